"""Workers of a study as processes on this machine; one that is killed is started again, and its trial goes on."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime.device import visible_gpus
from launcher.runtime.errors import ExitCode
from launcher.runtime.place import LOCAL_RESTARTS
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import tunables
from launcher.submission.resources import Resources
from launcher.submission.snapshot import Snapshot

_MOST_STARTS = 5
"""Starts of one worker that break down before it is given up."""


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    starts: int = 1


class LocalWorkers:
    """Some workers of one command."""

    def __init__(
        self, plans: Path, resources: Resources, snapshot: Snapshot, env: Mapping[str, str], logs: Path, *, beside: int
    ) -> None:
        self._plans, self._resources, self._snapshot = plans, resources, snapshot
        self._env, self._logs, self._beside = env, logs, beside
        self._all = 1

    def run(self, count: int, stop: StopFlag) -> int:
        """Until all have ended; a stop that was asked for is passed on. Returns the exit code that says most."""
        self._all = count
        told, codes = False, [ExitCode.DONE]
        workers = [_Worker(index, self._start(index, 0)) for index in range(count)]
        try:
            while workers:
                if stop and not told:
                    told = True
                    print(f"stopping: {len(workers)} workers save first; Ctrl-C again kills them", file=sys.stderr)
                    for worker in workers:
                        worker.process.send_signal(signal.SIGTERM)
                _wait([worker.process for worker in workers])
                for worker in [w for w in workers if w.process.poll() is not None]:
                    workers.remove(worker)
                    code = worker.process.returncode
                    if code not in tuple(ExitCode) and not told and worker.starts < _MOST_STARTS:
                        again = self._start(worker.index, worker.starts)
                        workers.append(_Worker(worker.index, again, worker.starts + 1))
                    else:
                        codes.append(ExitCode(code) if code in tuple(ExitCode) else ExitCode.TRAINING_FAILED)
        finally:
            for worker in workers:  # a second Ctrl-C, or a bug of ours: nothing is left behind
                worker.process.kill()
                worker.process.wait()
        return ExitCode(max(codes))

    def _start(self, index: int, restarts: int) -> subprocess.Popen[bytes]:
        hardware, token = self._resources.hardware, self._plans.stem
        cpus = hardware.cpus_per_task or max(1, len(os.sched_getaffinity(0)) // self._all)
        job = f"{token}_{index}"
        one_rank = {"GLOBALID": "0", "LOCALID": "0", "NTASKS": "1", "JOB_ID": job}
        env = dict(self._env) | {f"SUBMITIT_LOCAL_{name}": value for name, value in one_rank.items()}
        given = [self._env["PYTHONPATH"]] if self._env.get("PYTHONPATH") else []
        env |= {
            "SUBMITIT_EXECUTOR": "local",
            LOCAL_RESTARTS: str(restarts),
            "PYTHONPATH": os.pathsep.join([*map(str, self._snapshot.import_paths), *given]),
            "GLIBC_TUNABLES": tunables(self._env.get("GLIBC_TUNABLES")),
        }
        if hardware.device == "cuda" and (gpus := visible_gpus(self._env)):
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index :: self._all] or [gpus[index % len(gpus)]])
        words = [sys.executable, "-uP", "-m", "sweeps.study.worker", str(self._plans)]
        words += ["--beside", str(self._beside), "--cpus", str(cpus)]
        with ExitStack() as stack:
            out, err = (stack.enter_context((self._logs / f"{job}_0_log.{kind}").open("ab")) for kind in ("out", "err"))
            # In a process group of its own: Ctrl-C reaches us, and we pass on one signal to each worker.
            return subprocess.Popen(
                words, env=env, cwd=self._snapshot.cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                process_group=0,
            )  # fmt: skip


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until one ends, or half a second has passed."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for process in processes:
            if process.poll() is not None:
                return
            descriptor = os.pidfd_open(process.pid)
            stack.callback(os.close, descriptor)
            selector.register(descriptor, selectors.EVENT_READ)
        selector.select(timeout=0.5)
