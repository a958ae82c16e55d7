"""``launch.pack`` on this machine: a few workers share the members, each run forked from a parent that has torch."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launcher.runtime.device import visible_gpus
from launcher.runtime.errors import ExitCode
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.pack.trying import judge_worker
from launcher.runtime.policy import BROKE_DOWN, NEVER, OUT_OF_TIME, STOPPED, killed_or_code, limits_of
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir, write_plans
from launcher.submission.batch import PACK_WORKER
from launcher.submission.local_process import cores, process_env, say, start_process
from launcher.submission.packing import Packing
from launcher.submission.snapshot import Snapshot
from launcher.submission.submit import Job, told_apart

_GRACE_S = 120.0
"""Seconds that members have to save after their worker's time was over, as in ``local_queue``."""
_LOOK_EVERY_S = 0.5


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[bytes]
    gpus: list[str]
    restarts: int
    deadline: float
    """``time.monotonic()`` at which its longest time is over."""
    asked: bool = field(default=False)

    def kill(self) -> None:
        """End it and its members at once: they are in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class PackedQueue:
    """The members of one resource shape, and the workers that share them."""

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
        self._jobs, self._snapshot, self._packing, self._env, self._logs = list(jobs), snapshot, packing, env, logs
        self._token = f"local-{uuid.uuid4().hex[:12]}"
        self._plans = sweep.plans(self._token)
        self._queue = Queue(sweep.queue(self._token))
        self._free_gpus = visible_gpus(env)
        asked = jobs[0].resources
        self._gpus_each = asked.gpus if asked.hardware.device == "cuda" else 0
        room = len(self._free_gpus) // self._gpus_each if self._gpus_each else parallel
        self._count = min(packing.jobs(len(jobs)), parallel, room)
        self._workers: list[_Worker] = []
        self._told: set[str] = set()
        self._differs = told_apart(jobs)
        write_plans(self._plans, (job.plan.to_json() for job in self._jobs))
        self._queue.fill(entry_name(index) for index in range(len(self._jobs)))

    def run(self, stop: StopFlag) -> dict[str, int]:
        """Until no member waits, or a stop was asked for and every worker has ended; exit codes by run_id."""
        asked = False
        try:
            for index in range(self._count):
                self._start(f"{self._token}_{index}", 0)
            while self._workers:
                self._wait()
                if stop and not asked:
                    asked = True
                    say(f"stopping: {len(self._queue.claims())} runs save first; Ctrl-C again kills them")
                self._look_after(stop)
                self._tell()
        finally:
            self._kill()
        begun = [job for job in self._jobs if job.plan.rundir.state() is not None]
        return {job.plan.run_id: _code(job) for job in begun}

    def _kill(self) -> None:
        """After a second Ctrl-C, or a bug of ours, leave nothing behind, and no run that seems to go on."""
        for worker in self._workers:
            worker.kill()
            worker.process.wait()
        killed = [int(entry) for entry in self._queue.claims()] if self._workers else []
        for worker in self._workers:
            with self._queue.joined(worker.name):  # once its members are gone, too
                continue
        for rundir in (self._jobs[index].plan.rundir for index in killed):
            if rundir.state() == "RUNNING" and not rundir.is_locked():
                rundir.say_state("PREEMPTED", "killed before it had saved; it goes on from its last checkpoint")

    def _start(self, name: str, restarts: int) -> None:
        job = self._jobs[0]  # of the shape that all have
        gpus = [self._free_gpus.pop(0) for _ in range(self._gpus_each)]
        cpus = job.resources.hardware.cpus_per_task or max(1, cores() // self._count)
        threads = max(1, cpus // self._packing.beside)
        env = process_env(self._env, self._snapshot, job, job_id=name, restarts=restarts, threads=threads, gpus=gpus)
        words = [PACK_WORKER, str(self._plans), "--beside", str(self._packing.beside), "--cpus", str(cpus)]
        process = start_process(job, words, env, 0, cwd=self._snapshot.cwd, logs=self._logs)
        minutes = job.resources.hardware.time_min
        deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._workers.append(_Worker(name, process, gpus, restarts, deadline))

    def _wait(self) -> None:
        """Until a worker ends, or there may be something to tell."""
        with selectors.DefaultSelector() as selector:
            opened = [os.pidfd_open(worker.process.pid) for worker in self._workers]
            try:
                for descriptor in opened:
                    selector.register(descriptor, selectors.EVENT_READ)
                selector.select(timeout=_LOOK_EVERY_S)
            finally:
                for descriptor in opened:
                    os.close(descriptor)

    def _look_after(self, stop: StopFlag) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            code = worker.process.poll()
            if code is not None:
                self._workers.remove(worker)
                self._free_gpus += worker.gpus
                self._ended(worker, code if code >= 0 else 128 - code, bool(stop))
            elif (stop or now >= worker.deadline) and not worker.asked:
                worker.asked = True
                worker.process.send_signal(signal.SIGTERM)
            elif not stop and now >= worker.deadline + _GRACE_S:
                worker.kill()

    def _ended(self, worker: _Worker, code: int, stopping: bool) -> None:
        """Start it again where something is left for it to do and the policy of its runs allows it."""
        if stopping or code in NEVER or not (self._queue.list_waiting() or self._queue.claims()):
            return
        limits = limits_of(self._jobs[0].plan)
        cause = OUT_OF_TIME if worker.asked and code in STOPPED else f"{BROKE_DOWN}: {killed_or_code(code)}"
        decision = judge_worker(self._queue, worker.name, code, cause, limits, worker.restarts)
        if decision.requeue:
            self._queue.add_event(worker.name, "requeue", reason=decision.reason)
            self._start(worker.name, worker.restarts + 1)
        say(f"a worker ended ({decision.reason}); {'started again' if decision.requeue else 'the others go on'}")

    def _tell(self) -> None:
        for entry in self._queue.list_ended():
            if entry not in self._told:
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
