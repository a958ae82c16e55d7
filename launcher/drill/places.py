"""Where copies run, and how they are interrupted there: by what any user may do to their own jobs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Protocol

from launcher.drill.copies import Copies, Copy
from launcher.manage.survey import OVER, cluster_of
from launcher.runtime.device import visible_gpus
from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import write_plans
from launcher.slurm_cli import Slurm, SlurmError
from launcher.slurm_text import QueuedJob

_STEP = re.compile(r"\.s(\d+)")
"""The number of Slurm's step in the name of a start (``launcher.runtime.place``)."""


class Place(Protocol):
    """A queue, as a drill sees it."""

    at_once: bool
    """Whether both copies are started at the same time."""

    def start(self, copy: Copy) -> str:
        """Have ``copy`` begin, or go on; what it is known by there."""

    def warn(self, copy: Copy) -> None:
        """Ask it to save and stop, as a preemption does."""

    def kill(self, copy: Copy) -> None:
        """Kill its ranks."""

    def waits(self, copy: Copy) -> str | None:
        """Why it has not begun; None: it has, or it is gone."""

    def lives(self, copy: Copy) -> bool:
        """Whether it runs or will."""

    def began(self, copy: Copy) -> float | None:
        """When its newest start began, in seconds since the epoch."""

    def end(self, copies: Copies) -> None:
        """See that nothing of them runs any more."""


class OnSlurm:
    """As jobs: where Slurm itself requeues them, and where it may not they are submitted again."""

    at_once = True
    _END_S = 90.0
    """Longest wait for cancelled jobs to be gone."""

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm

    @staticmethod
    def of(copies: Copies, env: Mapping[str, str]) -> OnSlurm:
        """On the cluster that the run was submitted to."""
        from launcher.submission.dispatch import slurm_conf_of

        copy = copies.whole
        cluster = cluster_of(copies.slurm_conf, env)
        env_of = copy.snapshot.without_live_code({**env, **({"SLURM_CONF": cluster} if cluster else {})})
        return OnSlurm(Slurm(env_of, slurm_conf_of(copy.job, copy.cwd)))

    def start(self, copy: Copy) -> str:
        """``sbatch``, as any command of ours calls it."""
        from launcher.submission.commit import Wanted, to_slurm
        from launcher.submission.reconcile import Rule

        wanted = Wanted(copy.sweep, [copy.job], copy.snapshot, copy.sweep.job_logs, copy.cwd, Rule(failed=True))
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # receipts are for runs that stay
            (receipt,) = to_slurm(wanted, self._slurm).values()
        if receipt.job_id is None or receipt.state == "PLANNED":
            raise UserError(f"Slurm takes no more jobs for now ({receipt.reason}); drill when it does")
        return f"job {receipt.job_id}"

    def warn(self, copy: Copy) -> None:
        """``scancel --signal=USR2``: to the steps, as Slurm's own warning."""
        self._slurm.warn([self._job(copy)])

    def kill(self, copy: Copy) -> None:
        """``scancel`` of the step: SIGKILL to every rank, while the job itself goes on and asks for its requeue."""
        last = _last_start(copy)
        step = _STEP.search(str(last.get("incarnation")))
        self._slurm.kill_step(self._job(copy), int(step[1]) if step else 0)

    def waits(self, copy: Copy) -> str | None:
        """Slurm's reason."""
        waiting = [job for job in self._jobs(copy) if job.state == "PENDING"]
        return waiting[0].reason if waiting else None

    def lives(self, copy: Copy) -> bool:
        """Whether Slurm has a job of it that is not over; one that follows another counts."""
        return bool(self._jobs(copy))

    def began(self, copy: Copy) -> float | None:
        """Slurm's StartTime of the job that trains it."""
        try:
            said = self._slurm.show_job(self._job(copy)).get("StartTime", "")
            return datetime.fromisoformat(said).timestamp()
        except (SlurmError, ValueError):  # a figure less
            return None

    def end(self, copies: Copies) -> None:
        """``scancel`` what is left."""
        until = time.monotonic() + self._END_S
        cancelled = False
        while (jobs := [job.job_id for copy in copies.both for job in self._jobs(copy)]) and time.monotonic() < until:
            over = all(copy.rundir.state() == "COMPLETED" for copy in copies.both)
            if not cancelled and not over:
                self._slurm.cancel(jobs)
                cancelled = True
            time.sleep(0.3)

    def _job(self, copy: Copy) -> str:
        return str(_last_start(copy)["job_id"])

    def _jobs(self, copy: Copy) -> list[QueuedJob]:
        scripts = copy.sweep.path
        return [
            job for job in self._slurm.queue().values() if job.state not in OVER and _is_below(job.command, scripts)
        ]


def _is_below(command: str, folder: Path) -> bool:
    path = Path(command)
    return path.is_relative_to(folder) or path.is_relative_to(folder.resolve())


def _last_start(copy: Copy) -> Mapping[str, object]:
    return [event for event in copy.rundir.attempt_events() if event.get("event") == "start"][-1]


@dataclass
class _Ranks:
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    began: float = 0.0
    starts: int = 0


class OnThisMachine:
    """As processes: one copy after the other, each with all that the machine has."""

    at_once = False
    _END_S = 60.0
    """Longest wait for processes that were asked to stop."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._ranks: dict[str, _Ranks] = {}

    def start(self, copy: Copy) -> str:
        """A process for each rank, as the queue on this machine starts them."""
        from launcher.submission.batch import WORKER
        from launcher.submission.commit import Wanted
        from launcher.submission.local_process import cores, process_env, start_process
        from launcher.submission.local_queue import require_room
        from launcher.submission.reconcile import Rule

        ranks = self._ranks.setdefault(copy.name, _Ranks())
        job, plans = copy.job, copy.sweep.plans("drill")
        hardware = job.resources.hardware
        if not ranks.starts:
            require_room(job, self._env)
            Wanted(copy.sweep, [job], copy.snapshot, copy.sweep.job_logs, copy.cwd, Rule()).record([job])
            write_plans(plans, [job.plan.to_json()])
        env = process_env(
            copy.snapshot.without_live_code(self._env), copy.snapshot, job, job_id=f"drill-{os.getpid()}",
            restarts=ranks.starts, threads=hardware.cpus_per_task or max(1, cores() // hardware.tasks_per_node),
            gpus=visible_gpus(self._env)[: job.resources.gpus] if hardware.device == "cuda" else [],
        )  # fmt: skip
        words = [WORKER, str(plans), "--element", "0"]
        ranks.began, ranks.starts = time.time(), ranks.starts + 1
        ranks.processes = [
            start_process(job, words, env, rank, cwd=copy.snapshot.cwd, logs=copy.sweep.job_logs)
            for rank in range(hardware.tasks_per_node)
        ]
        return f"process {ranks.processes[0].pid}"

    def warn(self, copy: Copy) -> None:
        """SIGUSR2 to each rank."""
        self._signal(copy, signal.SIGUSR2)

    def kill(self, copy: Copy) -> None:
        """SIGKILL to each rank."""
        self._signal(copy, signal.SIGKILL)

    def waits(self, copy: Copy) -> str | None:
        """Nothing waits here."""
        return None

    def lives(self, copy: Copy) -> bool:
        """Whether a rank does."""
        return any(process.poll() is None for process in self._ranks[copy.name].processes)

    def began(self, copy: Copy) -> float | None:
        """When its processes were started."""
        return self._ranks[copy.name].began

    def end(self, copies: Copies) -> None:
        """Have the ranks that are left stop; after a while they are killed."""
        until = time.monotonic() + self._END_S
        for copy in copies.both:
            if copy.name in self._ranks and copy.rundir.state() != "COMPLETED":
                self._signal(copy, signal.SIGTERM)
        for process in (p for ranks in self._ranks.values() for p in ranks.processes):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _signal(self, copy: Copy, number: signal.Signals) -> None:
        for process in self._ranks[copy.name].processes:
            if process.poll() is None:
                process.send_signal(number)
