"""Workers of a study as processes on this machine; one that is killed is started again, and its trial goes on."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from launcher.runtime.device import visible_gpus
from launcher.runtime.errors import ExitCode
from launcher.runtime.pack.queue import Queue
from launcher.runtime.pack.trying import judge_worker
from launcher.runtime.policy import BROKE_DOWN, NEVER, killed_or_code, limits_of
from launcher.runtime.signals import StopFlag
from launcher.submission.local_process import cores, process_env, say, start_process
from launcher.submission.snapshot import Snapshot
from launcher.submission.submit import Job
from sweeps.study.folder import StudyDir


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    restarts: int = 0


class LocalWorkers:
    """The workers of one command."""

    def __init__(
        self,
        folder: StudyDir,
        token: str,
        job: Job,
        snapshot: Snapshot,
        env: Mapping[str, str],
        *,
        count: int,
        beside: int,
    ) -> None:
        self._sweep, self._token, self._job, self._snapshot, self._env = folder.sweep, token, job, snapshot, env
        self._count, self._beside = count, beside
        self._starts = Queue(folder.sweep.queue(token))
        self._workers: list[_Worker] = []
        self._codes: list[int] = []

    def run(self, stop: StopFlag) -> int:
        """Until all have ended; a stop that was asked for is passed on. Returns the exit code that says most."""
        told = False
        try:
            self._workers = [_Worker(index, self._start(index, 0)) for index in range(self._count)]
            while self._workers:
                if stop and not told:
                    told = True
                    say(f"stopping: {len(self._workers)} workers save first; Ctrl-C again kills them")
                    for worker in self._workers:
                        worker.process.send_signal(signal.SIGTERM)
                self._wait()
                for worker in [w for w in self._workers if w.process.poll() is not None]:
                    self._workers.remove(worker)
                    self._ended(worker, bool(stop))
        finally:
            for worker in self._workers:  # a second Ctrl-C, or a bug of ours: nothing is left behind
                with suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait()
        return max(self._codes, default=ExitCode.DONE)

    def _ended(self, worker: _Worker, stopping: bool) -> None:
        code = worker.process.returncode
        code = code if code >= 0 else 128 - code
        if not stopping and code not in NEVER:
            cause, limits = f"{BROKE_DOWN}: {killed_or_code(code)}", limits_of(self._job.plan)
            decision = judge_worker(self._starts, self._name(worker.index), code, cause, limits, worker.restarts)
            say(f"a worker ended ({decision.reason}); {'started again' if decision.requeue else 'the others go on'}")
            if decision.requeue:
                self._starts.add_event(self._name(worker.index), "requeue", reason=decision.reason)
                process = self._start(worker.index, worker.restarts + 1)
                self._workers.append(_Worker(worker.index, process, worker.restarts + 1))
                return
        self._codes.append(code)

    def _name(self, index: int) -> str:
        return f"{self._token}_{index}"

    def _start(self, index: int, restarts: int) -> subprocess.Popen[bytes]:
        cpus = self._job.resources.hardware.cpus_per_task or max(1, cores() // self._count)
        threads = max(1, cpus // self._beside)
        all_gpus = visible_gpus(self._env) if self._job.resources.hardware.device == "cuda" else []
        gpus = all_gpus[index :: self._count] or all_gpus[index % max(1, len(all_gpus)) :][:1]
        env = process_env(
            self._env,
            self._snapshot,
            self._job,
            job_id=self._name(index),
            restarts=restarts,
            threads=threads,
            gpus=gpus,
        )
        words = ["sweeps.study.worker", str(self._sweep.plans(self._token))]
        words += ["--beside", str(self._beside), "--cpus", str(cpus)]
        return start_process(self._job, words, env, 0, cwd=self._snapshot.cwd, logs=self._sweep.job_logs)

    def _wait(self) -> None:
        """Until one ends, or half a second has passed."""
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            for worker in self._workers:
                descriptor = os.pidfd_open(worker.process.pid)
                stack.callback(os.close, descriptor)
                selector.register(descriptor, selectors.EVENT_READ)
            selector.select(timeout=0.5)
