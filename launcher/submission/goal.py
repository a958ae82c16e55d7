"""What a sweep is after: whose it is, and the number that its runs are compared by."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.members import Member
from launcher.named_sweep import as_typed
from launcher.plan import make_plan
from launcher.runtime.curves import read_series
from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import nearest
from launcher.runtime.sweepdir import SweepDir

_OF_EVERY_RUN = ("best_val_loss", "val_loss", "train_loss", "samples_per_s", "tokens_per_s", "mfu", "wall_s")
"""Numbers in the summary of any run; a task adds its own."""


@dataclass(frozen=True)
class Goal:
    """Recorded with each request, for those who compare the runs."""

    metric: str
    """A number of ``summary.json``, or a curve such as ``val/loss``."""
    direction: str
    """``minimize`` or ``maximize``."""
    sweep: str
    """Name of the named sweep."""

    def value(self, rundir: RunDir) -> float:
        """The metric of a run that is done; of a curve the last value; NaN where the run has no value for it.

        Raises:
            UserError: runs of this kind have no such metric.
        """
        summary = rundir.read(rundir.summary) or {}
        if self.metric == "best_val_loss":  # where nothing is validated the training loss stands in
            return rundir.metric()
        if self.metric in summary:
            value = summary[self.metric]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"metric={self.metric}: is {value!r} in {rundir.summary}, no number")
            return float("nan") if value is None else float(value)
        curves = read_series(rundir.metrics) if rundir.metrics.exists() else {}
        if self.metric not in curves:
            known = [*curves, *(name for name, value in summary.items() if isinstance(value, int | float))]
            raise UserError(
                f"metric={self.metric}: run {rundir.path} has no such number{nearest(self.metric, known)} "
                f"(it has: {', '.join(sorted(known))})"
            )
        return curves[self.metric][1][-1]

    def doubt(self) -> str:
        """What to say before hours of training where the metric looks misspelt; empty: nothing."""
        near = nearest(self.metric, _OF_EVERY_RUN)
        if self.metric in _OF_EVERY_RUN or "/" in self.metric or not near:
            return ""
        return f"metric={self.metric}: only a run that is done can tell whether there is such a number{near}"

    def request(self) -> dict[str, str]:
        """As it stands in a request of ``sweep.json``."""
        return dataclasses.asdict(self)


def require_same_sweep(sweep: SweepDir, goal: Goal | None, targets: Iterable[str]) -> None:
    """See that a folder holds no runs of another named sweep, or of another task.

    Raises:
        UserError: its newest request that says so was for another one.
    """
    asked = sweep.read_requests()
    now = {"sweep": None if goal is None else goal.sweep, "target": only(targets)}
    for key, told in (("sweep", "sweep"), ("target", "task.target")):
        before = next((request[key] for request in reversed(asked) if request.get(key)), None)
        if before and now[key] and before != now[key]:
            raise UserError(
                f"{sweep.path}: holds runs of {told}={before}, this is {told}={now[key]}; choose another launch.name=…"
            )


def record_here(members: Sequence[Member], goal: Goal, cwd: Path) -> list[Member]:
    """Record a sweep whose members are run in this process; gives back those that learn something of their own.

    Raises:
        UserError: a member cannot be planned, or the folder holds another sweep.
    """
    made = [
        (member, make_plan(member.values, default_name=goal.sweep, cwd=cwd, overrides=member.words))
        for member in members
    ]
    unique = {plan.run_id: (member, plan) for member, plan in reversed(made)}
    kept = list(unique.values())[::-1]
    if len(kept) < len(made):
        say_merged(len(made) - len(kept), len(made))
    sweep = SweepDir(kept[0][1].rundir.path.parent)
    require_same_sweep(sweep, goal, [plan.target for _, plan in kept])
    if not kept[0][0].values["launch"]["dry_run"]:
        with sweep.locked():
            command = shlex.join(as_typed(sys.argv[1:]))
            target = only(plan.target for _, plan in kept)
            sweep.add_request(members=len(kept), command=command, target=target, **goal.request())
            sweep.add_members((plan.run_id, member.overrides) for member, plan in kept)
    return [member for member, _ in kept]


def say_merged(same: int, members: int) -> None:
    """Say that members which learn the same are one run."""
    print(f"{same} of {members} members learn the same as others: run once", file=sys.stderr)


def only(names: Iterable[str]) -> str | None:
    """The one name that all are; None where they differ."""
    found = set(names)
    return found.pop() if len(found) == 1 else None
