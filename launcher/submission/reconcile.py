"""A sweep is a set of runs that are wanted; the same command again does what is left to be done, and says so first.

Two phases: here it is *decided*, from the state of each run and the rule of ``launch.retry`` to one action; committing
to it is ``launcher.submission.submit`` for Slurm, ``local_queue`` for processes here. Deciding writes nothing, so that
a command that is killed between the two has changed nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from launcher.manage.states import GONE, RunState, run_states
from launcher.runtime.errors import ExitCode, RunsNotDone, UserError
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm

Action = Literal["start", "resume", "retry", "anew", "adopt", "leave", "keep", "skip"]
_MEANING: Mapping[Action, str] = {
    "start": "begin",
    "resume": "go on from their last checkpoints",
    "retry": "are run again, from their last checkpoints",
    "anew": "were made by other code: moved to {aside}, made anew from the start",
    "adopt": "are queued already",
    "leave": "have a job or a process already",
    "keep": "are left as they are",
    "skip": "are done",
}
_BEGINS = ("start", "resume", "retry", "anew")
_SHOWN = 3
"""Most runs of a kind that are named with their reasons."""


@dataclass(frozen=True)
class Rule:
    """Which runs that have ended are run again."""

    failed: bool = False
    """Those that FAILED, from their last checkpoints."""
    stale: bool = False
    """Those that were made by other code than today's, from the start."""

    @staticmethod
    def of(retry: str) -> Rule:
        """The rule that ``launch.retry`` stands for."""
        return Rule(failed=retry == "failed", stale=retry == "stale")

    def by_name(self) -> Rule:
        """The rule for a run that was named by itself: that is asking for it, even where it FAILED."""
        return replace(self, failed=True)


@dataclass(frozen=True)
class Decision:
    """What is done about one run."""

    run_id: str
    action: Action
    state: str
    reason: str = ""
    """Why it is in that state, where that is known."""
    job_id: str | None = None
    """Slurm's name of its job."""
    avoids: tuple[str, ...] = ()
    """Nodes on which it broke down."""
    other_code: bool = False
    """Whether it has ended and is known to be made by other code than today's."""

    @property
    def begins(self) -> bool:
        """Whether something is to be started for it."""
        return self.action in _BEGINS


def decide(state: RunState, rule: Rule, *, other_code: bool = False) -> Decision:
    """The one action for a run in ``state``; a pure function.

    Args:
        other_code: whether another snapshot made it than the one that would make it today.
    """
    action, avoids = _action(state, rule, other_code), tuple(one.node for one in state.excluded)
    return Decision(state.run_id, action, state.state, state.reason, state.job_id, avoids, other_code)


def _action(state: RunState, rule: Rule, other_code: bool) -> Action:
    if state.state in ("COMPLETED", "FAILED") and rule.stale and other_code:
        return "anew"
    if state.state == "COMPLETED":
        return "skip"
    if state.state == "FAILED":
        return "retry" if rule.failed else "keep"
    if state.is_active:
        return "adopt" if state.state == "SUBMITTED" else "leave"
    return "start" if state.state == "PLANNED" else "resume"


def decisions(
    sweep: SweepDir, plans: Sequence[Plan], rule: Rule, code: str | None, slurm: Slurm | None = None
) -> list[Decision]:
    """What is to be done about each of ``plans``; nothing is changed.

    Args:
        code: id of today's snapshot; None: it is not known, and no run is told to be of other code.
        slurm: asked for the jobs of runs that are not done; None: the runs are this machine's.

    Raises:
        UserError: a run that has ended belongs to another config.
        SlurmError: Slurm does not answer.
    """
    known = _done(plans)
    rest = [plan for plan in plans if plan.run_id not in known]
    known |= _by_slurm(sweep, rest, slurm) if slurm else {plan.run_id: _here(plan.rundir) for plan in rest}
    found = []
    for plan in plans:
        state = known[plan.run_id]
        other = state.state in ("COMPLETED", "FAILED") and _is_of_other_code(plan, code)
        found.append(decide(state, rule, other_code=other))
    return found


def nothing_to_do(sweep: SweepDir, plans: Sequence[Plan], rule: Rule, code: str | None) -> list[Decision] | None:
    """The decisions where all runs are done and remembered as they are asked for, else None; Slurm is not asked.

    Raises:
        UserError: a run belongs to another config.
    """
    done = _done(plans)
    if len(done) < len(plans) or not done.keys() <= sweep.read_members().keys():
        return None
    found = [decide(done[plan.run_id], rule, other_code=_is_of_other_code(plan, code)) for plan in plans]
    return None if any(decision.begins for decision in found) else found


def tell(sweep: SweepDir, found: Sequence[Decision]) -> None:
    """Say on stderr what will be done: a line for each action, and the first reasons of runs that FAILED."""
    print("\n".join(described(sweep, found)), file=sys.stderr, flush=True)


def described(sweep: SweepDir, found: Sequence[Decision]) -> list[str]:
    """The lines of ``tell``."""
    lines = []
    for action, meaning in _MEANING.items():
        chosen = [decision for decision in found if decision.action == action]
        if chosen:
            states = Counter(decision.state for decision in chosen)
            counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
            lines.append(f"{counts}: {meaning.format(aside=sweep.replaced)}{_of_other_code(chosen)}")
            lines += _reasons(sweep, chosen)
    if any(decision.action == "keep" for decision in found):
        lines.append("run what FAILED again:  the same command with launch.retry=failed")
    return lines


def _of_other_code(chosen: Sequence[Decision]) -> str:
    count = sum(decision.other_code for decision in chosen)
    if not count or chosen[0].action == "anew":
        return ""
    return f", {count} of them made by other code (launch.retry=stale makes them anew)"


def _reasons(sweep: SweepDir, chosen: Sequence[Decision]) -> list[str]:
    failed = [decision for decision in chosen if decision.state == "FAILED"]
    lines = [f"  {sweep.run(d.run_id).path}: {d.reason or 'no reason is known'}" for d in failed[:_SHOWN]]
    return [*lines, f"  and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else lines


def require_none_failed(sweep: SweepDir, found: Sequence[Decision]) -> None:
    """For a command that waits for its runs: those that FAILED and were left so end it as a failed run does.

    Raises:
        RunsNotDone: there are such.
    """
    kept = [decision for decision in found if decision.action == "keep"]
    if kept:
        raise RunsNotDone(
            f"{len(kept)} of {len(found)} runs FAILED before and were left as they are (launch.retry=failed runs them "
            f"again); {sweep.run(kept[0].run_id).path}: {kept[0].reason}",
            ExitCode.USER_ERROR,
        )


def _done(plans: Sequence[Plan]) -> dict[str, RunState]:
    """Those that are COMPLETED by their own word, which needs no other."""
    return {plan.run_id: _state(plan.rundir, "COMPLETED") for plan in plans if plan.rundir.state() == "COMPLETED"}


def _by_slurm(sweep: SweepDir, plans: Sequence[Plan], slurm: Slurm) -> dict[str, RunState]:
    submitted = {run for s in sweep.read_submissions() if s.job_id and not s.withdrawn for run, _ in s.jobs()}
    begun = {plan.run_id for plan in plans if plan.run_id in submitted or plan.rundir.status.exists()}
    states = run_states(sweep, slurm, only=begun) if begun else []
    return {plan.run_id: _state(plan.rundir, "PLANNED") for plan in plans} | {s.run_id: s for s in states}


def _here(rundir: RunDir) -> RunState:
    """The state of a run of this machine: a process trains it, or it goes on with this command."""
    status = rundir.read_status()
    state, reason = str(status.get("state") or "PLANNED"), str(status.get("reason") or "")
    if state in ("RUNNING", "REQUEUED", "SUBMITTED", "STALLED"):
        return _state(rundir, "RUNNING") if rundir.is_locked() else _state(rundir, "STALLED", GONE)
    return _state(rundir, state, reason)


def _state(rundir: RunDir, state: str, reason: str = "") -> RunState:
    return RunState(rundir.path.name, str(rundir.path), (), state, reason=reason)


def _is_of_other_code(plan: Plan, code: str | None) -> bool:
    """Whether the run that stands where ``plan``'s will was made by other code; its science is looked at too.

    Raises:
        UserError: it is a run of another science.
    """
    made = plan.rundir.read(plan.rundir.plan)
    if made is None:
        return False
    if (made.get("schema"), made.get("science")) != (plan.schema, plan.science):  # most often equal, and then quick
        require_same_science(plan)
    return code is not None and made.get("code") not in (None, code)


def require_same_science(plan: Plan) -> None:
    """See that the folder of ``plan``'s run is its own.

    Raises:
        UserError: it belongs to a run of another science.
    """
    if not plan.same_science(Plan.read(plan.rundir)):
        raise UserError(
            f"run directory {plan.rundir.path} belongs to another config; move it away or change launch.name"
        )
