"""Which checkpoint an attempt goes on from: the newest that is whole and of its lineage, the same one on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.runtime.checkpoint.manifest import Manifest
from launcher.runtime.checkpoint.reading import read
from launcher.runtime.distributed import from_all_ranks, from_main_rank
from launcher.runtime.errors import UserError
from launcher.runtime.fingerprint import differences, fingerprint
from launcher.runtime.lineage import candidates
from launcher.runtime.plan import Parent
from launcher.runtime.rundir import RunDir, checkpoint_of
from launcher.runtime.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A checkpoint that every rank has read and found whole."""

    path: Path
    manifest: Manifest
    content: dict[str, Any]
    """This rank's state."""
    inherited: bool = False
    """Whether it is another run's, from whose state this one begins."""


@dataclass
class Search:
    """What was found, and what was passed over on the way."""

    restored: Restored | None = None
    problems: list[str] = field(default_factory=list)
    """A line for each checkpoint that cannot be used, newest first."""


def find(
    rundir: RunDir, run_id: str, world: World, *, restart_if_damaged: bool, parent: Parent | None = None
) -> Search:
    """The checkpoint to go on from; every rank calls it and gets the same one.

    A run that has none of its own begins from the state of its ``parent``.

    Raises:
        UserError: as ``find_own``; or the parent's state cannot be used.
    """
    search = find_own(rundir, run_id, world, restart_if_damaged=restart_if_damaged)
    if search.restored is None and parent is not None:
        search.restored = _inherited(parent, world)
    if search.restored is not None and world.is_main:
        _warn_of_changes(search.restored.manifest, world)
    return search


def find_own(rundir: RunDir, run_id: str, world: World, *, restart_if_damaged: bool) -> Search:
    """The newest of the run's own checkpoints that is whole; every rank calls it and gets the same one.

    Rank 0 looks for candidates by step and attempt, never by time, and checks every file; each other rank checks what
    it reads itself. What one of them cannot read is passed over by all.

    Raises:
        UserError: there are full states, or there were, and none can be used; not with ``restart_if_damaged``.
    """
    search = Search()
    paths, orphans = candidates(rundir) if world.is_main else ([], [])
    for path in orphans:
        log.warning("checkpoint %s was committed by an attempt that had been given up; passed over", path.name)
    for path in from_main_rank(paths):
        read_it, problem = _read(path, run_id, world)
        if read_it is not None and not problem:
            search.restored = read_it
            break
        search.problems.append(problem)
        if world.is_main:
            log.error("%s; passed over", problem)
    if search.restored is None and not search.problems:
        gone = from_main_rank(_gone(rundir) if world.is_main else "")
        search.problems += [gone] if gone else []
    if search.restored is None and search.problems and not restart_if_damaged:
        raise UserError(
            f"run {rundir.path}: none of its {len(search.problems)} checkpoints can be used ({search.problems[0]}); "
            "put back a good one, or start over with checkpoint.restart_if_damaged=true"
        )
    return search


def _inherited(parent: Parent, world: World) -> Restored:
    """The parent's state; its curves and its best weights stay its own."""
    read_it, problem = _read(parent.state, parent.run_id, world)
    if read_it is None or problem:
        raise UserError(
            f"parent {parent.path}: its state of step {parent.step} cannot be used ({problem}); put it back, or type "
            "again what made this run: it then begins from the newest state that is there"
        )
    own = read_it.content["session"] | {"best_metric": None, "last": {}}
    return replace(read_it, content=read_it.content | {"session": own}, inherited=True)


def _gone(rundir: RunDir) -> str:
    """What tells that there was a full state; empty: nothing does."""
    sources = [event["from"] for event in rundir.attempt_events() if event.get("from")]
    if sources:
        return f"checkpoint {rundir.checkpoints / sources[-1]}: an attempt went on from it, and it is gone"
    saved = rundir.read_status().get("saved_step")
    return f"{rundir.checkpoints}: step {saved} was saved, and no checkpoint is there" if saved else ""


def _warn_of_changes(manifest: Manifest, world: World) -> None:
    if changed := differences(manifest.fingerprint, fingerprint(world)):
        log.warning("not what the checkpoint was made with, the last bits may differ: %s", "; ".join(changed))


def _read(path: Path, run_id: str, world: World) -> tuple[Restored | None, str]:
    """The checkpoint as this rank reads it, and what keeps any rank from reading it; the same words on all."""

    def attempt() -> Restored:
        manifest = Manifest.read(path)
        named = (manifest.kind, manifest.step, manifest.attempt)
        if manifest.run_id != run_id or named != checkpoint_of(path.name):
            what = f"{manifest.run_id}, {manifest.kind} {manifest.step} of attempt {manifest.attempt}"
            raise UserError(f"checkpoint {path}: is not what its place says ({what})")
        return Restored(path, manifest, read(path, manifest, world.rank, all_files=world.is_main))

    read_it, problem = _tried(attempt, world)
    return read_it, next((theirs for theirs in from_all_ranks(problem) if theirs), "")


def _tried(attempt: Callable[[], Restored], world: World) -> tuple[Restored | None, str]:
    try:
        return attempt(), ""
    except UserError as error:
        return None, str(error) if world.is_main else f"{error} (on rank {world.rank}, {world.node})"
