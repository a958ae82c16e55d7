"""Putting a job back into the queue: the policy, and the door that a batch script calls when srun has ended.

``python -uP -m launcher.requeue PLANS --code N`` is run by the batch shell, so that it cuts no rank's grace short and
is not lost with a rank 0 that was killed. It ends with DONE where Slurm is about to end the job, which is requeued, or
cancelled; with TRAINING_FAILED where it has used up its attempts; with ``BY_THE_SHELL`` where the shell has to ask
Slurm itself; and with USER_ERROR where all stays as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from launcher.runtime.errors import ExitCode, UserError, guarded, say_error
from launcher.runtime.failures import Hung, first_failure
from launcher.runtime.place import job_id, number
from launcher.runtime.plan import Plan
from launcher.runtime.progress import began_since_requeue, requeues, starts, without_progress
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import parse
from launcher.runtime.settings import RequeueSettings
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.worker import read_plan
from launcher.runtime.world import array_element
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError

T = TypeVar("T")
BY_THE_SHELL = 79
"""Exit code: the job should be requeued, and there is no scontrol here (Python runs in a container)."""
PREEMPTED, OUT_OF_TIME, ASKED, BROKE_DOWN = "preempted", "out of time", "asked to stop", "broke down"
"""Why a job ended; the last is followed by what broke."""
STOPPED = (
    ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED, 128 + signal.SIGUSR2, 128 + signal.SIGTERM,
)  # fmt: skip
"""Exit codes of ranks that were asked to stop; the last two before they could listen."""
_NEVER = (ExitCode.DONE, ExitCode.USER_ERROR, ExitCode.USAGE, ExitCode.TRAINING_FAILED)
_EARLY_S = 90.0
"""Slurm warns of a time limit up to a minute early (sbatch(1), --signal), and saving takes its time."""
_PAUSES_S = (5.0, 15.0, 60.0, 180.0)
"""Waits while slurmctld does not answer; the last again and again."""
_PATIENCE_S = 12 * 3600.0


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
    if ended.code in _NEVER:
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


def runs(shown: Mapping[str, str], restarts: int) -> bool:
    """Whether Slurm still runs the start of a job after ``restarts``, by what ``Slurm.show_job`` says of the job.

    It does not run one that is being cancelled or was requeued. And a shell may live on where Slurm has given its node
    up for lost: then the job runs elsewhere, as a later start, which a requeue would end.
    """
    later = shown.get("Restarts", "").isdecimal() and int(shown["Restarts"]) > restarts
    return shown.get("JobState") == "RUNNING" and not later


def classify(
    shown: Mapping[str, str], code: int, broken: str, now: datetime, warned_s: float, restarts: int = 0
) -> str | None:
    """Why a job ended, by what ``scontrol show job`` says of it; None: Slurm is ending it, and its word stands.

    Args:
        shown: ``Slurm.show_job``; empty: not known.
        code: with which its ranks ended.
        broken: what broke, should that be the cause.
        now: local time, as Slurm's times are.
        warned_s: ``--signal=USR2@<seconds>``. A job shorter than that is always near its end: a preemption wins.
        restarts: how often it had been requeued when this start of it began.
    """
    if shown and not runs(shown, restarts):
        return None
    if code not in STOPPED:
        return f"{BROKE_DOWN}: {broken}"
    preempted, started, end = (_time(shown.get(name)) for name in ("PreemptTime", "StartTime", "EndTime"))
    if preempted and (started is None or preempted >= started):  # not of an earlier start
        return PREEMPTED
    if end and end - now <= timedelta(seconds=warned_s + _EARLY_S):
        return OUT_OF_TIME
    return ASKED


def _time(said: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(said or "")
    except ValueError:  # None, Unknown
        return None


def limits_of(plan: Plan) -> RequeueSettings:
    """The limits in ``plan``; those of this version where it has none."""
    return parse(RequeueSettings, plan.execution.get("requeue") or {}, "requeue")


def what_broke(rundir: RunDir, job: str, code: int, restarts: int) -> tuple[int, str]:
    """The exit code and the words of what broke first in the start of ``job`` after ``restarts``; ``code``: srun's.

    srun ends with the highest code: of a rank whose user has something to mend, and others that were stopped for it,
    it tells the others'. And ranks that only lost a peer have nothing that could be mended.
    """
    events = rundir.attempt_events()
    begun = _begun(events, job) if began_since_requeue(events, job, restarts) else []  # else it has not even begun
    first = first_failure(rundir, str(begun[-1].get("incarnation"))) if begun else None
    if code > 128:
        killed = code - 128
        named = signal.Signals(killed).name if killed in list(signal.Signals) else f"signal {killed}"
        words = f"a rank was killed ({named})"
    else:
        words = f"exit code {code}"
    if first is None:
        return code, words
    if first.get("after_another"):
        return (code, words) if code > 128 else (ExitCode.BUG, "a rank was killed, or its node was lost")
    said = f"rank {first.get('rank')} on {first.get('host')}: {first.get('kind')}: {first.get('message')}"
    broke = first.get("kind") == Hung.__name__  # it ended as what is stopped does, and nobody had asked it to
    return ExitCode.BUG if broke else int(first.get("code") or code), " ".join(said.split())


def judge(rundir: RunDir, job: str, code: int, cause: str, limits: RequeueSettings, restarts: int) -> Decision:
    """``decide`` for the run in ``rundir``, whose files tell how often it was tried and what came of it."""
    if rundir.state() == "COMPLETED":
        return Decision(False, "COMPLETED")
    events = rundir.attempt_events()
    silent = 0 if began_since_requeue(events, job, restarts) else 1  # it broke down before it could say that it began
    idle = without_progress(events, job, rundir.newest_step())
    timeouts = requeues(events, job, OUT_OF_TIME)
    return decide(Ended(code, cause, starts(events, job) + silent, idle + silent, timeouts), limits)


def record(rundir: RunDir, job: str, reason: str) -> None:
    """Append to ``attempts.jsonl`` that ``job`` is about to be requeued; before it is, as nothing can be said after."""
    begun = _begun(rundir.attempt_events(), job)
    attempt = begun[-1].get("attempt") if begun else None
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    rundir.add_attempt_event(event="requeue", attempt=attempt, job_id=job, reason=reason, time=now)


def _begun(events: Sequence[Mapping[str, Any]], job: str) -> list[Mapping[str, Any]]:
    return [event for event in events if event.get("event") == "start" and str(event.get("job_id")) == job]


def main() -> int:
    """The door; returns its exit code."""
    return guarded(lambda: _run(_arguments(), os.environ))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.requeue", description="Requeue the job that calls it.")
    parser.add_argument("plans", type=Path, metavar="PLANS", help="file of plans, one a line")
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--warned", type=float, default=0.0, metavar="S", help="--signal=USR2@S of the job")
    parser.add_argument("--submission", metavar="TOKEN", help="which submission it is of")
    return parser.parse_args()


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    job = job_id(env)
    if job is None:
        raise UserError("SLURM_JOB_ID is not set: this is called by a batch script of the launcher")
    plan = read_plan(args.plans, array_element(env) or 0)
    rundir, sweep = plan.rundir, SweepDir(plan.rundir.path.parent)

    def cancelled() -> bool:
        return job in sweep.read_cancelled(args.submission)

    restarts = number(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0
    code, broken = what_broke(rundir, job, args.code, restarts)
    refused = sweep.refusal(args.plans.stem, job, str(restarts)).exists()
    if code in _NEVER or (refused and not began_since_requeue(rundir.attempt_events(), job, restarts)):
        return ExitCode.USER_ERROR
    if cancelled():  # ``launcher cancel`` has had it save; its scancel follows
        return ExitCode.DONE
    rundir.path.mkdir(parents=True, exist_ok=True)
    slurm = Slurm(env, patient=False) if shutil.which("scontrol", path=env.get("PATH")) else None
    shown = _patiently(lambda: slurm.show_job(job)) if slurm else {}
    cause = classify(shown, code, broken, datetime.now(), args.warned, restarts)
    if cause is None:
        return ExitCode.DONE
    decision = judge(rundir, job, code, cause, limits_of(plan), restarts)
    if decision.failed:
        rundir.give_up(decision.reason)
        say_error(UserError(decision.reason))
        return ExitCode.TRAINING_FAILED
    if not decision.requeue:
        if rundir.state() != "COMPLETED":
            rundir.say_state("PREEMPTED", f"{decision.reason}; the same command goes on")
        return ExitCode.USER_ERROR
    before = rundir.read_status()
    record(rundir, job, decision.reason)
    rundir.say_state("REQUEUED", decision.reason)
    if slurm is None:
        return BY_THE_SHELL
    try:
        if not _patiently(lambda: _ask(slurm, job, restarts, cancelled)):
            rundir.write_status(**(before or {"state": "PREEMPTED", "reason": "stopped before its first step"}))
        return ExitCode.DONE
    except SlurmError as error:
        said = "saved" if code == ExitCode.STOPPED_SAVED else decision.reason
        how = f"{said}; Slurm may not requeue it here: python -m launcher resume {rundir.path}"
        rundir.say_state("PREEMPTED" if code in STOPPED else "FAILED", how)
        say_error(error)
    return ExitCode.USER_ERROR


def _ask(slurm: Slurm, job: str, restarts: int, cancelled: Callable[[], bool]) -> bool:
    """Requeue ``job`` unless somebody was faster: a job that is being cancelled would come back."""
    if cancelled() or not runs(slurm.show_job(job), restarts):
        return False
    slurm.requeue(job)
    return True


def _patiently(call: Callable[[], T]) -> T:
    """``call()`` until slurmctld answers: the job holds its nodes, and Slurm's own limits end it.

    Raises:
        SlurmAway: it has not for hours.
    """
    until, tries = time.monotonic() + _PATIENCE_S, 0
    while True:
        try:
            return call()
        except SlurmAway as error:
            if time.monotonic() > until:
                raise
            pause_s = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
            print(f"{error}; trying again in {pause_s:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause_s)
            tries += 1


if __name__ == "__main__":
    sys.exit(main())
