"""Workers on this machine: processes that share what waits in a queue, looked after until none is left."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime.device import visible_gpus
from launcher.runtime.errors import ExitCode
from launcher.runtime.pack.queue import Queue
from launcher.runtime.pack.trying import judge_worker
from launcher.runtime.policy import BROKE_DOWN, NEVER, OUT_OF_TIME, STOPPED, killed_or_code, limits_of
from launcher.runtime.signals import StopFlag
from launcher.submission.jobs import Job
from launcher.submission.local_process import cores, process_env, say, start_process
from launcher.submission.snapshot import Snapshot

_GRACE_S = 120.0
"""Seconds that runs have to save after their worker's time was over, as in ``local_queue``."""
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Shift:
    """What workers do, and with what."""

    words: Sequence[str]
    """The module that each runs, and its options."""
    job: Job
    """Whose resources each has, and whose limits (``requeue.*``) hold for them."""
    beside: int
    """Runs at a time in each."""
    snapshot: Snapshot
    env: Mapping[str, str]
    logs: Path


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[bytes]
    gpus: list[str]
    restarts: int
    deadline: float
    """``time.monotonic()`` at which its longest time is over."""
    asked: bool = False

    def kill(self) -> None:
        """End it and its runs at once: they are in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class LocalWorkers:
    """The workers of one command."""

    def __init__(self, shift: Shift, starts: Queue, token: str, count: int, is_work_left: Callable[[], bool]) -> None:
        """At most ``count`` workers, fewer where GPUs are few; their ``starts`` are written down there."""
        self._shift, self._starts, self._token, self._is_work_left = shift, starts, token, is_work_left
        asked = shift.job.resources
        self._gpus_each = asked.gpus if asked.hardware.device == "cuda" else 0
        self._free_gpus = visible_gpus(shift.env) if self._gpus_each else []
        self._count = min(count, len(self._free_gpus) // self._gpus_each) if self._gpus_each else count
        self._workers: list[_Worker] = []
        self._codes: list[int] = []

    def run(self, stop: StopFlag, look: Callable[[], None] = lambda: None) -> int:
        """Until all have ended; a stop that was asked for is passed on. Returns the exit code that says most.

        Args:
            look: called twice a second.
        """
        told = False
        try:
            for index in range(self._count):
                self._start(f"{self._token}_{index}", 0)
            while self._workers:
                self._wait()
                if stop and not told:
                    told = True
                    say(f"stopping: the runs of {len(self._workers)} workers save first; Ctrl-C again kills them")
                self._look_after(stop)
                look()
        finally:
            for worker in self._workers:  # a second Ctrl-C, or a bug of ours: nothing is left behind
                worker.kill()
            for worker in self._workers:
                with self._starts.joined(worker.name):  # once its runs are gone, too
                    continue
        return max(self._codes, default=ExitCode.DONE)

    def _start(self, name: str, restarts: int) -> None:
        shift = self._shift
        gpus = [self._free_gpus.pop(0) for _ in range(self._gpus_each)]
        hardware = shift.job.resources.hardware
        cpus = hardware.cpus_per_task or max(1, cores() // self._count)
        threads = max(1, cpus // shift.beside)
        env = process_env(
            shift.env, shift.snapshot, shift.job, job_id=name, restarts=restarts, threads=threads, gpus=gpus
        )
        words = [*shift.words, "--beside", str(shift.beside), "--cpus", str(cpus)]
        process = start_process(shift.job, words, env, 0, cwd=shift.snapshot.cwd, logs=shift.logs)
        deadline = time.monotonic() + 60 * hardware.time_min if hardware.time_min else float("inf")
        self._workers.append(_Worker(name, process, gpus, restarts, deadline))

    def _wait(self) -> None:
        """Until a worker ends, or something may be due."""
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
        if stopping or code in NEVER or not self._is_work_left():
            self._codes.append(code)
            return
        limits = limits_of(self._shift.job.plan)
        cause = OUT_OF_TIME if worker.asked and code in STOPPED else f"{BROKE_DOWN}: {killed_or_code(code)}"
        decision = judge_worker(self._starts, worker.name, code, cause, limits, worker.restarts)
        say(f"a worker ended ({decision.reason}); {'started again' if decision.requeue else 'the others go on'}")
        if decision.requeue:
            self._starts.add_event(worker.name, "requeue", reason=decision.reason)
            self._start(worker.name, worker.restarts + 1)
        else:
            self._codes.append(code)
