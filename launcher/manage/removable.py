"""What of ended runs, and of sweeps, can be removed: found out from their files; nothing is changed here."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.manage.states import RunState
from launcher.runtime.checkpoint.manifest import require_whole
from launcher.runtime.errors import UserError
from launcher.runtime.files import read_json_lines
from launcher.runtime.lineage import candidates
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir

Keep = Literal["all", "last", "best"]
"""Which checkpoints stay. all: each. last: best and final weights, and the newest full state. best: of a COMPLETED run
its best and final weights alone, of another what last keeps."""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "PREEMPTED")
"""Not STALLED: where machines do not share file locks its process may live on another one."""


@dataclass(frozen=True)
class Item:
    """A file or a folder that can be removed."""

    path: Path
    kind: str
    """state, traces, unfinished, replaced or code."""
    bytes: int
    files: int
    """Files and folders: each takes an inode."""

    @staticmethod
    def of(path: Path, kind: str) -> Item:
        """``path`` with all that is in it; a file that has another name elsewhere frees nothing."""
        inside = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        found = []
        for one in inside:
            with suppress(FileNotFoundError):  # somebody else has just removed it
                found.append(one.lstat())
        freed = sum(one.st_size for one in found if stat.S_ISREG(one.st_mode) and one.st_nlink == 1)
        return Item(path, kind, freed, len(found))


def has_ended(state: RunState) -> bool:
    """Whether a run began, and no job and no process is there for it any more."""
    return state.state in _ENDED and not state.is_active


def of_run(rundir: RunDir, keep: Keep, *, traces: bool, completed: bool, checksums: bool) -> list[Item]:
    """What can go of a run that has ended.

    Args:
        traces: what the profiler recorded, too.
        completed: whether the run is COMPLETED; what another one would go on from stays.
        checksums: read what is to stay first, byte for byte; else its sizes are believed.

    Raises:
        UserError: states would go, and no checkpoint that would stay is whole.
    """
    found = [Item.of(path, "unfinished") for path in (*rundir.list_unfinished(), *rundir.list_torn())]
    found += [Item.of(path, "state") for path in _states(rundir, keep, completed=completed, checksums=checksums)]
    if traces and rundir.traces.is_dir():
        found.append(Item.of(rundir.traces, "traces"))
    return found


def states_of_children_to_come(sweep: SweepDir) -> Iterator[Path]:
    """Checkpoints from which runs of ``sweep``, and of others beside it, are still to begin."""
    for plan in sweep.path.parent.glob("*/*/plan.json"):
        child = RunDir(plan.parent)
        try:
            parent = (child.read(plan) or {}).get("parent")
        except UserError:  # torn: it can begin from nothing
            continue
        if parent and not child.list_checkpoints("step") and child.state() != "COMPLETED":
            yield (RunDir(Path(parent["path"])).checkpoints / parent["checkpoint"]).resolve()


def _states(rundir: RunDir, keep: Keep, *, completed: bool, checksums: bool) -> list[Path]:
    states = rundir.list_checkpoints("step")
    if keep == "all" or not states:
        return []
    weights = [path for kind in ("best", "final") for path in rundir.list_checkpoints(kind)]
    problems: list[str] = []
    if keep == "best" and completed and _first_whole(weights, checksums, problems):
        return states
    newest = _first_whole(candidates(rundir)[0], checksums, problems)
    if newest is None:
        raise UserError(f"run {rundir.path}: no checkpoint of it is whole ({problems[0]}); all of them stay")
    return [path for path in states if path != newest]


def _first_whole(checkpoints: Sequence[Path], checksums: bool, problems: list[str]) -> Path | None:
    for path in checkpoints:
        try:
            require_whole(path, checksums=checksums)
            return path
        except UserError as error:
            problems.append(str(error))
    problems.append("it has none to go on from")
    return None


def of_sweep(sweep: SweepDir, states: Iterable[RunState], *, idle: bool) -> list[Item]:
    """What can go of a sweep besides its runs.

    A run that was moved aside goes where the one that took its place is COMPLETED: until then it has the only weights.

    Args:
        states: of all runs of the sweep.
        idle: whether no job and no process is there for any of them: else a copy of the code may be in use.
    """
    done = {state.run_id for state in states if state.state == "COMPLETED"}
    aside = sorted(sweep.replaced.iterdir()) if sweep.replaced.is_dir() else []
    gone = [path for path in aside if path.name.rpartition(".")[0] in done]
    found = [Item.of(path, "replaced") for path in gone]
    if idle and sweep.code.is_dir():
        used = set(_used_code(sweep, [path for path in aside if path not in gone]))
        copies = sorted(sweep.code.iterdir())
        found += [Item.of(path, "code") for path in copies if path.name not in used and not path.name.startswith(".")]
        found += [Item.of(path, "unfinished") for path in copies if path.name.startswith(".")]
    return found


def _used_code(sweep: SweepDir, replaced: Sequence[Path]) -> Iterator[str]:
    """Copies of the code that a run was planned or last submitted with, or that the last command took."""
    for rundir in [*(sweep.run(run) for run in sweep.list_runs()), *map(RunDir, replaced)]:
        yield str((rundir.read(rundir.plan) or {}).get("code"))
    for request in sweep.read_requests()[-1:]:
        yield str(request.get("code"))
    submissions = [one for one in sweep.read_submissions() if not one.withdrawn]
    newest = {run: one.token for one in submissions for run in one.runs}
    for submission in submissions:
        if submission.is_open or submission.token in newest.values():
            for plan in read_json_lines(sweep.plans(submission.token)):
                if submission.is_open or newest.get(str(plan.get("run_id"))) == submission.token:
                    yield str(plan.get("code"))
