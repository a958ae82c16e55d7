"""The two short copies of a run: composed as ``launcher resume`` would compose it, in a folder of their own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.manage.again import go_to
from launcher.manage.recorded import Launched, compose_again, last_launched, require_recorded
from launcher.manage.targets import one_run
from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.jobs import Job
from launcher.submission.snapshot import Snapshot

if TYPE_CHECKING:
    from launcher.members import Member

WHOLE, INTERRUPTED = "uninterrupted", "interrupted"
"""The names of the copies: folders below that of the drill."""
ON_SLURM, _BASIC = "submitit_slurm", "basic"
"""Options of ``hydra/launcher``; any other runs on this machine too."""
LEAST_STEPS = 3
_WORDS = (
    "++launch.pack=null", "++launch.beside=1", "++checkpoint.at_end=nothing", "++tracker.tensorboard=false",
    "++tracker.mlflow=false", "++tracker.wandb=false", "++tracker.curves=false", "++requeue.max_attempts=20",
    "++requeue.max_without_progress=3",
)  # fmt: skip
"""What a copy has not of its run: nothing is left of it but its numbers, and nobody outside hears of it."""


@dataclass(frozen=True)
class Copy:
    """One of the two, ready to be started."""

    name: str
    sweep: SweepDir
    """It alone stands in it."""
    job: Job
    snapshot: Snapshot
    values: Mapping[str, Any]
    """Its whole config."""
    cwd: Path
    """Where its run was typed."""
    hold_at: tuple[int, ...]
    """Steps that it waits at to be interrupted."""

    @property
    def rundir(self) -> RunDir:
        """Where it leaves everything."""
        return self.job.plan.rundir


@dataclass(frozen=True)
class Copies:
    """Both, and how their run was launched."""

    whole: Copy
    interrupted: Copy
    folder: Path
    launcher: str
    """``hydra/launcher`` of the run."""
    slurm_conf: str | None
    """``SLURM_CONF`` of the cluster that the run was submitted to, where it says."""

    @property
    def both(self) -> tuple[Copy, Copy]:
        """The uninterrupted one first."""
        return self.whole, self.interrupted

    def remove(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def holds(steps: int) -> tuple[int, int]:
    """The steps at which a copy of ``steps`` steps is interrupted: after a third, and after two thirds of them."""
    first = max(1, steps // 3)
    return first, max(first + 1, 2 * steps // 3)


def make_copies(word: str, steps: int, cwd: Path) -> Copies:
    """The copies of the run that ``word`` stands for, each of ``steps`` steps; nothing is written yet.

    From here on this process stands where the run was typed.

    Raises:
        UserError: there is no such run, what was typed does not fit any more, or the run never saves on a cadence.
    """
    from launcher.submission.dispatch import names_of, snapshot_of

    if steps < LEAST_STEPS:
        raise UserError(f"--steps {steps}: two interruptions take at least {LEAST_STEPS} steps")
    sweep, run_id = one_run(word, cwd)
    sweep = SweepDir(sweep.path.absolute())
    (launched,) = last_launched(sweep, [run_id])
    typed_in = require_recorded([launched])
    go_to(typed_in)
    folder = sweep.drills / f"{run_id}-{uuid.uuid4().hex[:6]}"
    wanted = [
        _shortened(launched, folder / name, steps, hold_at)
        for name, hold_at in ((WHOLE, ()), (INTERRUPTED, holds(steps)))
    ]
    members = [again.member for again in compose_again(wanted)]
    if members[0].values["task"].get("argv") is not None:
        raise UserError("task.argv: a program keeps its weights to itself, a drill could not compare them")
    if members[0].values["checkpoint"]["every_steps"] is None:
        raise UserError(
            "checkpoint.every_steps=null: this run saves nothing while it trains, so a kill costs it everything and "
            "there is nothing to drill; launch it with checkpoint=default"
        )
    # One for both, or an edit in between would be taken for an inexact resume.
    snapshot = snapshot_of(SweepDir(folder), names_of(members), typed_in, root=sweep.path.parent)
    whole, interrupted = (_copy(folder, member, snapshot, typed_in) for member in members)
    return Copies(whole, interrupted, folder, members[0].launcher, launched.slurm_conf)


def _shortened(launched: Launched, folder: Path, steps: int, hold_at: tuple[int, ...]) -> Launched:
    """The run as if it had been typed as a copy of its own."""
    drill = (f"++drill.stop_after={steps}", f"++drill.hold_at=[{','.join(map(str, hold_at))}]")
    words = (*launched.plan.overrides, *_WORDS, *drill)
    return Launched(
        SweepDir(folder), replace(launched.plan, overrides=words, root=str(folder.parent), name=folder.name)
    )


def _copy(folder: Path, member: Member, snapshot: Snapshot, typed_in: Path) -> Copy:
    from launcher.plan import make_queued_plan

    name = member.values["launch"]["name"]
    queue = member.queue if member.launcher != _BASIC else {}
    plan, resources = make_queued_plan(
        member.values, queue, default_name=name, cwd=typed_in, code=snapshot.id, here=member.launcher != ON_SLURM,
        overrides=member.words,
    )  # fmt: skip
    job = Job(plan, resources, member.overrides)
    hold_at = tuple(member.values["drill"]["hold_at"])
    return Copy(name, SweepDir(folder / name), job, snapshot, member.values, typed_in, hold_at)
