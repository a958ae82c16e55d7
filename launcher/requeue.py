"""Putting a job back into the queue: the door that a batch script calls when srun has ended.

``python -uP -m launcher.requeue PLANS --code N`` is run by the batch shell, so that it cuts no rank's grace short and
is not lost with a rank 0 that was killed. It ends with DONE where Slurm is about to end the job, which is requeued, or
cancelled; with TRAINING_FAILED where it has used up its attempts; with ``BY_THE_SHELL`` where the shell has to ask
Slurm itself; and with USER_ERROR where all stays as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from launcher.avoiding import NodesOfJob
from launcher.chain import Chain
from launcher.runtime.errors import ExitCode, UserError, guarded, say_error
from launcher.runtime.pack.queue import Queue
from launcher.runtime.pack.trying import judge_worker
from launcher.runtime.place import job_id, number
from launcher.runtime.plan import Plan
from launcher.runtime.policy import (
    ASKED,
    BROKE_DOWN,
    NEVER,
    OUT_OF_TIME,
    PREEMPTED,
    STOPPED,
    Decision,
    judge,
    killed_or_code,
    limits_of,
    record,
    what_broke,
)
from launcher.runtime.progress import began_since_requeue
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.worker import read_plan
from launcher.runtime.world import array_element
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError

T = TypeVar("T")
BY_THE_SHELL = 79
"""Exit code: the job should be requeued, and there is no scontrol here (Python runs in a container)."""
NOT_HERE = "Slurm may not requeue it here"
"""What the status of a run says whose job Slurm would not take back."""
_EARLY_S = 90.0
"""Slurm warns of a time limit up to a minute early (sbatch(1), --signal), and saving takes its time."""
_PAUSES_S = (5.0, 15.0, 60.0, 180.0)
"""Waits while slurmctld does not answer; the last again and again."""
_PATIENCE_S = 12 * 3600.0


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


def main() -> int:
    """The door; returns its exit code."""
    return guarded(lambda: _run(_arguments(), os.environ))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.requeue", description="Requeue the job that calls it.")
    parser.add_argument("plans", type=Path, metavar="PLANS", help="file of plans, one a line")
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--warned", type=float, default=0.0, metavar="S", help="--signal=USR2@S of the job")
    parser.add_argument("--packed", action="store_true", help="the job is a worker of packed members")
    parser.add_argument("--submission", metavar="TOKEN", help="which submission it is of")
    parser.add_argument("--chained", action="store_true", help="other jobs wait to go on where this one ends")
    parser.add_argument("--ended", action="store_true", help="Slurm itself has ended the job")
    return parser.parse_args()


class _OneRun:
    """A job that trains one run, as the door sees it."""

    def __init__(self, plan: Plan, job: str, restarts: int, refusal: Path, nodes: NodesOfJob) -> None:
        self.rundir, self.limits, self._job, self._restarts = plan.rundir, limits_of(plan), job, restarts
        self._refusal, self._nodes = refusal, nodes
        self._before: dict[str, Any] = {}

    def what_broke(self, code: int) -> tuple[int, str]:
        return what_broke(self.rundir, self._job, code, self._restarts)

    def is_for_the_user(self, code: int) -> bool:
        """Whether it ended, before it could train or after, by what a requeue would not change."""
        begun = began_since_requeue(self.rundir.attempt_events(), self._job, self._restarts)
        return code in NEVER or (self._refusal.exists() and not begun)

    def judge(self, code: int, cause: str) -> Decision:
        return judge(self.rundir, self._job, code, cause, self.limits, self._restarts)

    def give_up(self, reason: str) -> None:
        self.rundir.give_up(reason)

    def stay(self, reason: str) -> None:
        if self.rundir.state() != "COMPLETED":
            self.rundir.say_state("PREEMPTED", f"{reason}; the same command goes on")

    def requeued(self, reason: str, slurm: Slurm | None, successor: str | None = None) -> None:
        self.rundir.path.mkdir(parents=True, exist_ok=True)
        self._before = self.rundir.read_status()
        at_fault = self._nodes.culprit() if reason.startswith(BROKE_DOWN) else None
        if slurm:
            _patiently(lambda: self._nodes.exclude(at_fault, reason, slurm))
        record(self.rundir, self._job, reason, at_fault.node if at_fault else None, successor)
        self.rundir.say_state("REQUEUED", f"{reason}; goes on in job {successor}" if successor else reason)
        self._nodes.stay_alive()

    def keep_off(self, slurm: Slurm, successor: str | None = None) -> None:
        self._nodes.keep_off(slurm, successor)

    def not_requeued(self) -> None:
        """Somebody was faster, or it is being cancelled."""
        self.rundir.write_status(**(self._before or {"state": "PREEMPTED", "reason": "stopped before its first step"}))

    def refused(self, code: int, reason: str) -> None:
        said = "saved" if code == ExitCode.STOPPED_SAVED else reason
        how = f"{said}; {NOT_HERE}: python -m launcher resume {self.rundir.path}"
        self.rundir.say_state("PREEMPTED" if code in STOPPED else "FAILED", how)


class _Worker:
    """A job that runs packed members: they wait for any worker, and what becomes of each is its own affair."""

    def __init__(self, plan: Plan, queue: Queue, job: str, restarts: int) -> None:
        self._limits, self._queue, self._job, self._restarts = limits_of(plan), queue, job, restarts

    def what_broke(self, code: int) -> tuple[int, str]:
        return code, killed_or_code(code)

    def is_for_the_user(self, code: int) -> bool:
        return code in NEVER

    def judge(self, code: int, cause: str) -> Decision:
        return judge_worker(self._queue, self._job, code, cause, self._limits, self._restarts)

    def give_up(self, reason: str) -> None:
        """Its members are not lost: other workers take them, or the same command does."""

    stay = give_up

    def requeued(self, reason: str, slurm: Slurm | None, successor: str | None = None) -> None:
        self._queue.add_event(self._job, "requeue", reason=reason)

    def keep_off(self, slurm: Slurm, successor: str | None = None) -> None:
        """Members of many runs: no node is one's own to avoid."""

    def not_requeued(self) -> None:
        """Nothing was said in a file of a run."""

    def refused(self, code: int, reason: str) -> None:
        """As ``give_up``."""


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    job = job_id(env)
    if job is None:
        raise UserError("SLURM_JOB_ID is not set: this is called by a batch script of the launcher")
    element = array_element(env) or 0
    plan, restarts = read_plan(args.plans, 0 if args.packed else element), _restarts(env)
    sweep = SweepDir(plan.rundir.path.parent)
    slurm = Slurm(env, patient=False) if shutil.which("scontrol", path=env.get("PATH")) else None
    chain = Chain.of(sweep, args.submission, job, element) if args.chained else Chain(job)
    if args.ended:
        if slurm is not None:
            chain.let_go(slurm)
        return ExitCode.DONE
    subject = _subject(args, plan, sweep, job, restarts, env)

    def cancelled() -> bool:
        return job in sweep.read_cancelled(args.submission)

    code, broken = subject.what_broke(args.code)
    if subject.is_for_the_user(code):
        chain.end(slurm)
        return ExitCode.USER_ERROR
    if cancelled():  # ``launcher cancel`` has had it save; its scancel follows
        return ExitCode.DONE
    shown = _patiently(lambda: slurm.show_job(job)) if slurm else {}
    cause = classify(shown, code, broken, datetime.now(), args.warned, restarts)
    if cause is None:
        return ExitCode.DONE
    decision = subject.judge(code, cause)
    if not decision.requeue:
        chain.end(slurm)
    if decision.failed:
        subject.give_up(decision.reason)
        say_error(UserError(decision.reason))
        return ExitCode.TRAINING_FAILED
    if not decision.requeue:
        subject.stay(decision.reason)
        return ExitCode.USER_ERROR
    if (successor := _patiently(lambda: chain.hand_on(slurm))) is not None:
        subject.requeued(decision.reason, slurm, successor)
        if slurm:
            for later in chain.after[chain.after.index(successor) :]:  # the next one may not live to tell the others
                subject.keep_off(slurm, later)
        return ExitCode.USER_ERROR
    subject.requeued(decision.reason, slurm)
    if slurm is None:
        return BY_THE_SHELL
    try:
        if _patiently(lambda: _ask(slurm, job, restarts, cancelled)):
            subject.keep_off(slurm)
        else:
            subject.not_requeued()
        return ExitCode.DONE
    except SlurmError as error:
        subject.refused(code, decision.reason)
        say_error(error)
    return ExitCode.USER_ERROR


def _subject(
    args: argparse.Namespace, plan: Plan, sweep: SweepDir, job: str, restarts: int, env: Mapping[str, str]
) -> _OneRun | _Worker:
    plans = args.plans.stem  # of a successor, those of the job that its chain began with
    if args.packed:
        return _Worker(plan, Queue(sweep.queue(plans)), job, restarts)
    token, most = args.submission or plans, limits_of(plan).max_excluded
    nodes = NodesOfJob(plan.rundir, sweep, token, job, restarts, most, env)
    return _OneRun(plan, job, restarts, sweep.refusal(plans, job, str(restarts)), nodes)


def _restarts(env: Mapping[str, str]) -> int:
    return number(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0


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
