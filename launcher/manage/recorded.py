"""How a run was launched, and the same composed anew from the configs of today."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.runtime.errors import UserError
from launcher.runtime.plan import Parent, Plan
from launcher.runtime.sections import flat
from launcher.runtime.sweepdir import Submission, SweepDir

if TYPE_CHECKING:
    from launcher.members import Member

_SETTLED = ("launch.name", "launch.root", "launch.wait", "launch.dry_run", "launch.retry")
"""Said by where the run stands, or wishes of one command alone."""
_SHOWN = 5


@dataclass(frozen=True)
class Launched:
    """A run as it was last launched."""

    sweep: SweepDir
    plan: Plan
    slurm_conf: str | None = None
    """``SLURM_CONF`` of the cluster that it was submitted to; None: the default one, or none."""


@dataclass(frozen=True)
class Again:
    """A run that is to go on: as it was launched, and what the same words compose to today."""

    old: Launched
    member: Member


def last_launched(sweep: SweepDir, run_ids: Sequence[str]) -> list[Launched]:
    """How each run was last launched, whether its job ever began or not.

    Raises:
        UserError: a run has no plan, or one that cannot be read.
    """
    latest: dict[str, tuple[Submission, int]] = {}
    for submission in sweep.read_submissions():
        if not submission.withdrawn:
            latest |= {run: (submission, index) for index, run in enumerate(submission.runs)}
    lines: dict[Submission, dict[int, str]] = {}
    for run_id in run_ids:
        if run_id in latest:
            submission, index = latest[run_id]
            lines.setdefault(submission, {})[index] = run_id
    submitted = {
        run: Launched(sweep, plan, submission.slurm_conf)
        for submission, of in lines.items()
        for run, plan in _read(sweep.plans(submission.token), of).items()
    }
    found = []
    for run_id in run_ids:
        own = Launched(sweep, Plan.read(sweep.run(run_id)))  # of the newest attempt that began
        last = submitted.get(run_id, own)
        found.append(own if own.plan.created > last.plan.created else last)
    return found


def _read(file: Path, lines: Mapping[int, str]) -> dict[str, Plan]:
    """Plans of some lines of a submission's file; none where it is gone: each run has its own."""
    try:
        with file.open(encoding="utf-8") as stream:
            return {lines[i]: Plan.from_json(json.loads(line)) for i, line in enumerate(stream) if i in lines}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"plans {file}: cannot be read ({error}); type the command that started it again") from None


def require_recorded(runs: Sequence[Launched]) -> Path:
    """The folder in which ``runs`` were typed.

    Raises:
        UserError: an older version planned one of them, or they were typed in several folders.
    """
    for run in runs:
        if not run.plan.cwd:
            asked = [str(request.get("command") or "") for request in run.sweep.read_requests()]
            asked = [command for command in asked if command.partition(" ")[0] not in ("", "resume", "retry")]
            last = f", the last one was: python -m launcher.run {asked[-1]}" if asked else ""
            raise UserError(
                f"run {run.sweep.run(run.plan.run_id).path}: an older version planned it and did not record what was "
                f"typed; type the command that started it again{last}"
            )
    folders: dict[str, list[str]] = {}
    for run in runs:
        folders.setdefault(run.plan.cwd, []).append(run.plan.run_id)
    if len(folders) > 1:
        told = "; ".join(
            f"{folder}: {' '.join(ids[:_SHOWN])}{' …' * (len(ids) > _SHOWN)}" for folder, ids in folders.items()
        )
        raise UserError(f"these runs were launched in {len(folders)} folders; name those of one ({told})")
    return Path(next(iter(folders)))


def compose_again(runs: Sequence[Launched], overrides: Sequence[str] = ()) -> list[Again]:
    """The members that ``runs`` are by the configs of today, with ``overrides`` on top.

    Raises:
        UserError: what was typed does not fit, or not any more.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from hydra_plugins.seemore._queues import register
    from omegaconf.errors import OmegaConfBaseException

    from launcher.config_tree import CONFIG_FOLDER, CONFIG_NAME
    from launcher.members import Composer, checked_members

    grid = [_words(run.sweep, run.plan, overrides) for run in runs]
    # What all share is composed once, as the words of one command are.
    shared = [word for word in grid[0] if not word.lstrip("+").startswith("hydra") and all(word in g for g in grid)]
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            master = hydra.compose_config(CONFIG_NAME, shared, run_mode=RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException):  # a whole member may compose, or tells it better
            master = hydra.compose_config(CONFIG_NAME, ["site=default"], run_mode=RunMode.MULTIRUN)
        members = checked_members(grid, Composer(hydra.config_loader, master))
    found = zip(runs, members, strict=True)
    return [Again(run, replace(member, parent=run.plan.parent)) for run, member in found]


def _words(sweep: SweepDir, plan: Plan, overrides: Sequence[str]) -> list[str]:
    """What to compose: as it was typed, for the folder in which the run stands, and ``overrides`` last."""
    from launcher.members import key_of

    here = sweep.path.absolute()
    here = Path(plan.root) / plan.name if _same(Path(plan.root) / plan.name, here) else here
    settled = {"name": here.name, "root": str(here.parent)}
    words = [word for word in plan.overrides if key_of(word) not in _SETTLED]
    words += [f"launch.{key}={_quoted(value)}" for key, value in settled.items()]
    words += ["launch.wait=false", "launch.dry_run=false", "launch.retry=never"]
    return [*_without(words, {key_of(word) for word in overrides}), *overrides]


def as_child(run: Again, parent: Parent) -> Again:
    """``run`` as one that begins from the state of ``parent``; of its words those are recorded that say what it is."""
    from launcher.members import key_of

    words = [(key_of(word), word) for word in run.member.overrides]
    kept = [(key, word) for key, word in words if key not in _SETTLED]
    hydras = tuple(word for key, word in kept if key.startswith("hydra"))
    overrides = tuple(word for _, word in kept if word not in hydras)
    member = replace(run.member, parent=parent, hydras=(*run.member.hydras, *hydras), overrides=overrides)
    return replace(run, member=member)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _quoted(value: str) -> str:
    """``value`` as Hydra's grammar of overrides reads it back."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=value, quote=Quote.single).with_quotes()


def require_same_science(runs: Sequence[Again], plans: Sequence[Plan]) -> None:
    """See that ``plans`` of today are the runs that they are to go on with.

    Raises:
        UserError: one would learn something else; names the keys that differ.
    """
    others = [(run, new) for run, new in zip(runs, plans, strict=True) if new.run_id != run.old.plan.run_id]
    if not others:
        return
    run, new = others[0]
    old = run.old.plan
    path = run.old.sweep.run(old.run_id).path
    many = f" ({len(others)} of {len(runs)} runs differ)" if len(runs) > 1 else ""
    commit = old.environment.get("git_sha")
    back = f"git checkout {commit[:12]}" if commit else "bring the old configs back"
    typed = shlex.join(_without(old.overrides, ("launch.wait", "launch.dry_run", "launch.retry")))
    raise UserError(
        f"run {path}: what was typed makes another run today: {_changes(old, new)}{many}; nothing was started. "
        f"Go back to what it was planned with ({back}, or the old data), or start it as a new run: "
        f"cd {shlex.quote(old.cwd)} && python -m launcher.run {typed}"
    )


def _without(words: Sequence[str], keys: Collection[str]) -> list[str]:
    from launcher.members import key_of

    return [word for word in words if key_of(word) not in keys]


def _changes(old: Plan, new: Plan) -> str:
    """``optim.lr 0.1 -> 0.2``, for each key of science that differs."""
    before, after = _science(old), _science(new)
    none: Any = "none"
    keys = [key for key in {**before, **after} if before.get(key, none) != after.get(key, none)]
    told = [f"{key} {before.get(key, none)} -> {after.get(key, none)}" for key in keys]
    if not told:  # the schema reads the same words in another way
        told = [f"task.schema {old.schema} -> {new.schema}" if old.schema != new.schema else f"schema {new.schema}"]
    return ", ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")


def _science(plan: Plan) -> dict[str, Any]:
    try:
        return flat(plan.identity())
    except UserError:  # the schema of today does not read it
        return flat(plan.science)
