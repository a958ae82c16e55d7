"""What becomes of a job that stopped or broke down: the policy, whoever queues it. Slurm is not asked here."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from launcher.runtime.errors import ExitCode, Stopped
from launcher.runtime.failures import BROKE, first_failure
from launcher.runtime.plan import Plan
from launcher.runtime.progress import began_since_requeue, requeues, starts, without_progress
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import parse
from launcher.runtime.settings import RequeueSettings

PREEMPTED, OUT_OF_TIME, ASKED, BROKE_DOWN = "preempted", "out of time", "asked to stop", "broke down"
"""Why a job ended; the last is followed by what broke."""
STOPPED = (
    ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED, 128 + signal.SIGUSR2, 128 + signal.SIGTERM,
)  # fmt: skip
"""Exit codes of ranks that were asked to stop; the last two before they could listen."""
NEVER = (ExitCode.DONE, ExitCode.USER_ERROR, ExitCode.USAGE, ExitCode.TRAINING_FAILED)
"""Exit codes that no requeue would change."""


@dataclass(frozen=True)
class Ended:
    """What is known of a job whose ranks are gone."""

    code: int
    """Exit code: srun's, or 128 + a signal."""
    cause: str
    """PREEMPTED, OUT_OF_TIME, ASKED, or BROKE_DOWN and what broke."""
    starts: int = 1
    """How often it was started."""
    without_progress: int = 0
    """Starts in a row, up to this one, that left no newer checkpoint."""
    timeouts: int = 0
    """How often it was requeued because it was out of time."""
    cancelled: bool = False
    """By ``launcher cancel``."""


@dataclass(frozen=True)
class Decision:
    """What becomes of the job."""

    requeue: bool
    reason: str
    failed: bool = False
    """It has used up its attempts: the run is FAILED."""


def decide(ended: Ended, limits: RequeueSettings) -> Decision:
    """Whether a job goes back into the queue. One that its user must mend, or has cancelled, never does."""
    if ended.cancelled:
        return Decision(False, "cancelled")
    if ended.code in NEVER:
        return Decision(False, f"exit code {ended.code}: a requeue would not change it")
    last = f"(last: {ended.cause.removeprefix(f'{BROKE_DOWN}: ')}); see logs"
    if ended.starts >= limits.max_attempts:
        return Decision(False, f"requeue.max_attempts={limits.max_attempts} attempts are used up {last}", True)
    if ended.without_progress >= limits.max_without_progress:
        tried = f"{ended.without_progress} attempts in a row" if ended.without_progress > 1 else "1 attempt"
        return Decision(False, f"{tried} made no progress {last}", True)
    if ended.cause == OUT_OF_TIME and limits.max_timeouts is not None and ended.timeouts >= limits.max_timeouts:
        return Decision(False, f"{OUT_OF_TIME}; max_num_timeout={limits.max_timeouts} requeues for that are used up")
    return Decision(True, ended.cause)


def limits_of(plan: Plan) -> RequeueSettings:
    """The limits in ``plan``; those of this version where it has none."""
    return parse(RequeueSettings, plan.execution.get("requeue") or {}, "requeue")


def what_broke(rundir: RunDir, job: str, code: int, restarts: int) -> tuple[int, str]:
    """The exit code and the words of what broke first in the start of ``job`` after ``restarts``; ``code``: srun's.

    srun ends with the highest code: of a rank whose user has something to mend, and others that were stopped for it,
    it tells the others'. And ranks that only lost a peer have nothing that could be mended.
    """
    first, words = first_of_start(rundir, job, restarts), killed_or_code(code)
    if first is None:
        return code, words
    # srun asks the others to stop when one was killed; while they wait for it they do so without a word of a peer.
    stopped = first.get("kind") == Stopped.__name__ and code > 128 and code not in STOPPED
    if first.get("after_another") or stopped:
        return (code, words) if code > 128 else (ExitCode.BUG, "a rank was killed, or its node was lost")
    said = f"rank {first.get('rank')} on {first.get('host')}: {first.get('kind')}: {first.get('message')}"
    broke = first.get("kind") in BROKE
    return ExitCode.BUG if broke else int(first.get("code") or code), " ".join(said.split())


def first_of_start(rundir: RunDir, job: str, restarts: int) -> dict[str, Any] | None:
    """The record of the rank that failed first in the start of ``job`` after ``restarts``; None: there is none."""
    events = rundir.attempt_events()
    begun = _begun(events, job) if began_since_requeue(events, job, restarts) else []  # else it has not even begun
    return first_failure(rundir, str(begun[-1].get("incarnation"))) if begun else None


def killed_or_code(code: int) -> str:
    """An exit code in words."""
    if code <= 128:
        return f"exit code {code}"
    killed = code - 128
    named = signal.Signals(killed).name if killed in list(signal.Signals) else f"signal {killed}"
    return f"a rank was killed ({named})"


def judge(rundir: RunDir, job: str, code: int, cause: str, limits: RequeueSettings, restarts: int) -> Decision:
    """``decide`` for the run in ``rundir``, whose files tell how often it was tried and what came of it."""
    if rundir.state() == "COMPLETED":
        return Decision(False, "COMPLETED")
    events = rundir.attempt_events()
    silent = 0 if began_since_requeue(events, job, restarts) else 1  # it broke down before it could say that it began
    idle = without_progress(events, job, rundir.newest_step())
    timeouts = requeues(events, job, OUT_OF_TIME)
    return decide(Ended(code, cause, starts(events, job) + silent, idle + silent, timeouts), limits)


def record(rundir: RunDir, job: str, reason: str, node: str | None = None, successor: str | None = None) -> None:
    """Append to ``attempts.jsonl`` that ``job`` is about to be requeued; before it is, as nothing can be said after.

    Args:
        node: the one on which it broke down, where that is known.
        successor: the job that goes on instead.
    """
    begun = _begun(rundir.attempt_events(), job)
    attempt = begun[-1].get("attempt") if begun else None
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    broken = {"broke_down": True, "node": node} if reason.startswith(BROKE_DOWN) else {}
    next_ = {"next": successor} if successor else {}
    rundir.add_attempt_event(event="requeue", attempt=attempt, job_id=job, reason=reason, time=now, **broken, **next_)


def _begun(events: Sequence[Mapping[str, Any]], job: str) -> list[Mapping[str, Any]]:
    return [event for event in events if event.get("event") == "start" and str(event.get("job_id")) == job]


def settle(plan: Plan, job: str, code: int, restarts: int, *, out_of_time: bool = False) -> tuple[int, bool]:
    """Decide on a run whose processes are gone and that is not done, where no Slurm knows why; its files tell it.

    Args:
        job: the job that ran it, after ``restarts`` requeues.
        code: with which they ended.
        out_of_time: they were asked to stop because its longest time was over.

    Returns:
        The exit code that counts, and whether the run waits for another start.
    """
    code, broken = what_broke(plan.rundir, job, code, restarts)
    cause = OUT_OF_TIME if out_of_time else f"{BROKE_DOWN}: {broken}"
    if code in STOPPED and not out_of_time:
        cause = ASKED
        if code == ExitCode.STOPPED_SAVED:  # by somebody who knows its process: they mean this run
            return code, False
    decision = judge(plan.rundir, job, code, cause, limits_of(plan), restarts)
    if decision.failed:
        plan.rundir.give_up(decision.reason)
        return ExitCode.TRAINING_FAILED, False
    if decision.requeue:
        record(plan.rundir, job, decision.reason)
    return code, decision.requeue


def close_status(rundir: RunDir, codes: Sequence[int], code: int, began: float) -> None:
    """Say how a run ended whose ranks could not say it themselves.

    Args:
        codes: of each rank, minus the signal that killed it.
        code: the one of them that says most.
        began: seconds since the epoch; what its files said before is an earlier attempt's word.
    """
    status = rundir.read_status()
    is_new = float(status.get("heartbeat") or 0) >= began
    if is_new and status.get("state") in ("FAILED", "PREEMPTED", "COMPLETED"):
        return
    state, reason = "PREEMPTED", "stopped before its first step"
    if code not in (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED):
        ended = {rank: code for rank, code in enumerate(codes) if code}
        words = [
            f"rank {r}: code {c}" if c > 0 else f"rank {r} ended by {signal.Signals(-c).name}" for r, c in ended.items()
        ]
        state, reason = "FAILED", ", ".join(words)
    elif status.get("state"):  # an earlier attempt's word on where it stands still holds
        state, reason = "PREEMPTED", "stopped on request"
    rundir.say_state(state, reason)
