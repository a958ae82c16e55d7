"""From a sweep's file and a command line to a study: the one config that all trials share, composed and checked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launcher.members import Composer, Member, complete_members, key_of
from launcher.named_sweep import NamedSweep
from launcher.points import point_of, text_of
from launcher.runtime.errors import UserError
from launcher.runtime.recipe import Recipe
from launcher.runtime.sections import flat, nearest, parse
from sweeps.study.definition import SHOWN, Definition, StudySettings
from sweeps.study.space import Axis, read_space

_MOST_TRIED = 500
"""Combinations of other values that are tried for one that does not fit by itself: it may fit beside them."""


def read_study(sweep: NamedSweep) -> tuple[tuple[Axis, ...], StudySettings]:
    """The space and the settings that a sweep's file holds.

    Raises:
        UserError: it holds none, or some that cannot be meant.
    """
    if not sweep.file.search:
        said = f"python -m launcher.run -m sweep={sweep.name}" if sweep.file.vary else "name what to search"
        raise UserError(f"{sweep.path}: has no 'search'; {said}")
    try:
        space, settings = read_space(sweep.file.search), parse(StudySettings, sweep.file.study, "study")
        if settings.sampler == "grid" and (ranges := [axis.key for axis in space if not axis.choices]):
            raise UserError(f"study.sampler=grid: needs choices; search.{ranges[0]} is a range")
    except UserError as error:
        raise UserError(f"{sweep.path}: {error}") from None
    return space, settings


def compose_study(sweep: NamedSweep, space: Sequence[Axis], typed: Sequence[str]) -> Member:
    """The config that all trials share.

    Raises:
        UserError: what was typed, or stands in the file, does not fit.
    """
    searched = {axis.key for axis in space}
    for word in typed:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word}: should be an override like key=value")
        if key_of(word) in searched:
            raise UserError(f"{word}: {key_of(word)} is searched by {sweep.path}; leave one of them out")
    stronger = {key_of(word) for word in typed}
    fixed = {} if sweep.file.experiment is None else {"experiment": sweep.file.experiment}
    if both := sorted(searched & set(sweep.file.fixed)):
        raise UserError(f"{sweep.path}: {both[0]}: stands in search and in fixed; name it once")
    words = [word for key, word in point_of({**fixed, **sweep.file.fixed}).items() if key not in stronger]
    if "launch.name" not in stronger | set(sweep.file.fixed):
        words.append(f"launch.name={text_of(sweep.name)}")
    words += typed
    if "/" in sweep.file.metric:  # the curve that the metric is read from
        words += ["++tracker.csv=true", "++tracker.curves=false"]
    return _composed(words, searched)


def _composed(words: list[str], searched: Collection[str]) -> Member:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from hydra_plugins.seemore._queues import register

    from launcher.compose import COMPOSITION_ERRORS, told
    from launcher.config_tree import CONFIG_FOLDER, CONFIG_NAME

    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            master = hydra.compose_config(CONFIG_NAME, [], run_mode=RunMode.MULTIRUN)
        except COMPOSITION_ERRORS as error:
            raise UserError(told(error)) from None
        member = complete_members([words], [], Composer(hydra.config_loader, master))[0]
        _require_unreferred(hydra.config_loader.load_sweep_config(master, list(member.overrides)), searched)
        return member


def _require_unreferred(config: DictConfig, searched: Collection[str]) -> None:
    """See that no other value is made of one that is searched: trials change that one alone.

    Raises:
        UserError: one is.
    """
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(ours, resolve=False)
    assert isinstance(values, dict)
    for key, value in flat({str(name): section for name, section in values.items()}).items():
        if found := next((one for one in sorted(searched) if f"${{{one}}}" in str(value)), None):
            raise UserError(
                f"search.{found}: {key}={value} refers to it and would not follow; have the task read {found} from its "
                "config (a program: from $LAUNCHER_CONFIG)"
            )


def require_fitting(definition: Definition, groups: Sequence[str], path: Path) -> None:
    """See that the schema takes both ends, or each choice, of every axis: by itself, or beside some of the others.

    Args:
        groups: names of the config groups.

    Raises:
        UserError: all that does not fit, in one line.
    """
    recipe, problems = definition.recipe, []
    for axis in definition.space:
        if axis.key in groups:
            problems.append(f"search.{axis.key}: is a config group; allowed are keys with plain values, e.g. optim.lr")
        elif axis.key not in (known := recipe.keys()):
            problems.append(f"search: unknown key '{axis.key}'{nearest(axis.key, known)}")
        else:
            problems += [f"search: {problem}" for value in axis.probes if (problem := _misfit(definition, axis, value))]
    if problems:
        more = f"; and {len(problems) - 4 * SHOWN} more" if len(problems) > 4 * SHOWN else ""
        raise UserError(f"{path}: " + "; ".join(problems[: 4 * SHOWN]) + more)


def _misfit(definition: Definition, axis: Axis, value: Any) -> str | None:
    """Why no trial may have ``value``; None: some may."""
    problem = _refusal(definition.recipe, {axis.key: value})
    if problem is None:
        return None
    known = definition.recipe.keys()
    others = [other for other in definition.space if other is not axis and other.key in known]
    beside = product(*(other.probes for other in others))
    keys = [other.key for other in others]
    for values in islice(beside, _MOST_TRIED):
        if _refusal(definition.recipe, dict(zip(keys, values, strict=True)) | {axis.key: value}) is None:
            return None
    return problem


def _refusal(recipe: Recipe, changes: dict[str, Any]) -> str | None:
    try:
        recipe.plan_with(changes)
    except UserError as error:
        return str(error)
    return None
