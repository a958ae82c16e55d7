"""Starting one process of a queue on this machine: what it is told by its environment, and where it prints."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.place import LOCAL_RESTARTS
from launcher.runtime.world import tunables
from launcher.submission.jobs import Job
from launcher.submission.snapshot import Snapshot
from launcher.submission.variables import variables_here


def process_env(
    env: Mapping[str, str],
    snapshot: Snapshot,
    job: Job,
    *,
    job_id: str,
    restarts: int,
    threads: int,
    gpus: Sequence[str],
) -> dict[str, str]:
    """The environment of the ranks of ``job``, without their number: submitit's variables, the code, threads, GPUs."""
    hardware = job.resources.hardware
    told = snapshot.environment(env) | {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": job_id,
        LOCAL_RESTARTS: str(restarts),
        "SUBMITIT_LOCAL_NTASKS": str(hardware.tasks_per_node),
        "GLIBC_TUNABLES": tunables(env.get("GLIBC_TUNABLES")),
    }
    told |= variables_here(job.resources.site, env)
    told.setdefault("OMP_NUM_THREADS", str(threads))
    if hardware.device == "cuda":
        told["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return told


def start_process(
    job: Job, words: Sequence[str], env: Mapping[str, str], rank: int, *, cwd: Path, logs: Path
) -> subprocess.Popen[bytes]:
    """Start ``python -uP -m WORDS`` as rank ``rank`` of ``job``; it prints to ``<job>_<rank>_log.out`` and ``.err``.

    Raises:
        UserError: there is no such Python.
    """
    python = job.resources.site.python
    command = [*(shlex.split(python) if python else [sys.executable]), "-uP", "-m", *words]
    place = {"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)}
    name = f"{env['SUBMITIT_LOCAL_JOB_ID']}_{rank}_log"
    with ExitStack() as stack:
        out = stack.enter_context((logs / f"{name}.out").open("ab"))
        joined = job.resources.queue.get("stderr_to_stdout")
        err = out if joined else stack.enter_context((logs / f"{name}.err").open("ab"))
        try:
            # In a process group of its own: Ctrl-C reaches us, and we pass on one signal to each rank.
            return subprocess.Popen(
                command, env={**env, **place}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                process_group=0,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"site.python={python}: {error.strerror}") from None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """On stderr; nobody need be there to read it: a closed terminal or ``| head`` must not end the runs."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
