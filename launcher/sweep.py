"""The members of a sweep: composed, checked all together, and given the sweep's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from launcher.compose import COMPOSITION_ERRORS, plain, told
from launcher.naming import default_name
from launcher.plan import check
from launcher.runtime.errors import UserError


def complete_members(
    grid: Sequence[Sequence[str]], varying: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]
) -> list[list[str]]:
    """The overrides of each member, with what a member of this sweep has by default.

    Args:
        grid: the overrides of each member.
        varying: names of the keys that the sweep varies.
        compose: from a member's overrides to its config, Hydra's own section included.

    Raises:
        UserError: the members that do not fit, all in one line.
    """
    problems: list[str] = []
    members: list[list[str]] = []
    for overrides in grid:
        try:
            config = compose(overrides)
            check(plain(config))
        except COMPOSITION_ERRORS as error:
            problems.append(told(error))
        except UserError as error:
            problems.append(str(error))
        else:
            members.append([*overrides, *_defaults(config, varying)])
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)) + f" ({len(problems)} of {len(grid)} members)")
    return members


def _defaults(config: DictConfig, varying: Sequence[str]) -> list[str]:
    extra: list[str] = []
    if config.launch.name is None:
        extra.append(f"launch.name={default_name(config.hydra.runtime.choices, varying)}")
    if config.checkpoint.at_end is None:
        extra.append("checkpoint.at_end=weights")
    return extra
