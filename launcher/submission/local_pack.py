"""``launch.pack`` on this machine: a few workers share the members, each run forked from a parent that has torch."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.runtime.errors import ExitCode
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.policy import NEVER, STOPPED
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir, write_plans
from launcher.submission.batch import PACK_WORKER
from launcher.submission.jobs import Job, told_apart
from launcher.submission.local_process import say
from launcher.submission.local_workers import LocalWorkers, Shift
from launcher.submission.packing import Packing
from launcher.submission.snapshot import Snapshot


class PackedQueue:
    """The members of one resource shape."""

    def __init__(
        self,
        sweep: SweepDir,
        jobs: Sequence[Job],
        snapshot: Snapshot,
        packing: Packing,
        parallel: int,
        env: Mapping[str, str],
        logs: Path,
    ) -> None:
        """At most ``parallel`` workers share ``jobs``."""
        token = f"local-{uuid.uuid4().hex[:12]}"
        plans = sweep.plans(token)
        self._jobs, self._differs = list(jobs), told_apart(jobs)
        self._queue = Queue(sweep.queue(token))
        self._told: set[str] = set()
        write_plans(plans, (job.plan.to_json() for job in jobs))
        self._queue.fill(entry_name(index) for index in range(len(jobs)))
        shift = Shift([PACK_WORKER, str(plans)], jobs[0], packing.beside, snapshot, env, logs)
        self._workers = LocalWorkers(
            shift, self._queue, token, min(packing.jobs(len(jobs)), parallel), self._is_work_left
        )

    def run(self, stop: StopFlag) -> dict[str, int]:
        """Until no member waits, or a stop was asked for and every worker has ended; exit codes by run_id."""
        try:
            code = self._workers.run(stop, self._tell)
        finally:
            self._close_killed()
        codes = {job.plan.run_id: _code(job) for job in self._jobs if job.plan.rundir.state() is not None}
        if code not in STOPPED and not stop:  # nobody has stopped it: what did not even begin has failed
            codes |= {job.plan.run_id: code or ExitCode.BUG for job in self._jobs if job.plan.run_id not in codes}
        return codes

    def _is_work_left(self) -> bool:
        return bool(self._queue.list_waiting() or self._queue.claims())

    def _close_killed(self) -> None:
        """Say so of members that were killed: otherwise they would seem to go on."""
        for rundir in (job.plan.rundir for job in self._jobs):
            if rundir.state() == "RUNNING" and not rundir.is_locked():
                rundir.say_state("PREEMPTED", "killed before it had saved; it goes on from its last checkpoint")

    def _tell(self) -> None:
        for entry in self._queue.list_ended():
            if entry not in self._told and int(entry) < len(self._jobs):
                self._told.add(entry)
                plan = self._jobs[int(entry)].plan
                status = plan.rundir.read_status()
                reason = f": {status['reason']}" if status.get("reason") else ""
                title = f"{plan.run_id} {self._differs[plan.run_id]}".rstrip()
                say(f"[{len(self._told)}/{len(self._jobs)}] {status.get('state') or 'FAILED'}: {title}{reason}")


def _code(job: Job) -> int:
    """What a run that was begun ended with, by its files."""
    rundir = job.plan.rundir
    if rundir.state() == "COMPLETED":
        return ExitCode.DONE
    if rundir.state() != "FAILED":
        return ExitCode.STOPPED_SAVED
    codes = [event.get("code") for event in rundir.attempt_events() if event.get("event") == "end"]
    own = codes[-1] if codes else None
    return own if own in NEVER and own != ExitCode.DONE else ExitCode.TRAINING_FAILED  # else it was given up
