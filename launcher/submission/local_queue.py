"""``hydra/launcher=submitit_local``: the jobs of a cluster as processes on this machine, a few at a time.

Ranks find each other by the variables that submitit's own local executor sets. A run that broke down, or is out of
time, is started again as Slurm's jobs are (``launcher.runtime.policy``). Ctrl-C (or SIGTERM) lets every running run
save and leaves it resumable; a second Ctrl-C kills them.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.runtime.device import visible_gpus
from launcher.runtime.errors import ExitCode, RunsNotDone, UserError
from launcher.runtime.policy import close_status, settle
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir, write_plans
from launcher.submission.batch import WORKER
from launcher.submission.jobs import Job, by_shape, told_apart
from launcher.submission.local_pack import PackedQueue
from launcher.submission.local_process import cores, process_env, say, start_process
from launcher.submission.packing import Packing
from launcher.submission.snapshot import Snapshot

_LINGER_S = 10.0
"""Seconds that ranks have to end by themselves after one of them has ended without being done."""
_GRACE_S = 120.0
"""Seconds that ranks have to save after their time was over; hydra-submitit-launcher's ``signal_delay_s``."""
_STOPPED = (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED)


@dataclass
class _Running:
    """A run whose ranks live."""

    index: int
    """Its place among the queue's jobs."""
    job: Job
    ranks: list[subprocess.Popen[bytes]]
    gpus: list[str]
    deadline: float
    """``time.monotonic()`` at which it is asked to stop: its longest time is over."""
    began: float = field(default_factory=time.time)
    """Seconds since the epoch: what its files said before is an earlier attempt's word."""
    kill_at: float = float("inf")
    """When what still lives is killed."""
    asked: bool = False
    """To stop, by us: its time is over, or the user wants it."""

    def signal(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)


class _Queue:
    """Runs in order, at most ``parallel`` at a time, each with its own GPUs."""

    def __init__(
        self,
        sweep: SweepDir,
        jobs: Sequence[Job],
        snapshot: Snapshot,
        parallel: int,
        env: Mapping[str, str],
        logs: Path,
    ) -> None:
        self.codes: dict[str, ExitCode | int] = {}
        self._sweep, self._jobs, self._snapshot, self._parallel = sweep, list(jobs), snapshot, parallel
        self._env, self._logs, self._differs = env, logs, told_apart(jobs)
        self._free_gpus = visible_gpus(env)
        self._token = f"local-{uuid.uuid4().hex[:12]}"
        self._running: list[_Running] = []
        self._waiting = list(range(len(self._jobs)))
        self._restarts = dict.fromkeys(self._waiting, 0)
        write_plans(sweep.plans(self._token), (job.plan.to_json() for job in self._jobs))

    def run(self, stop: StopFlag) -> None:
        """Until all are done, or a stop was asked for and every rank has ended."""
        told = False
        try:
            while self._running or (self._waiting and not stop):
                while not stop and self._may_start():
                    self._start(self._waiting.pop(0))
                self._wait(stop)
                if stop and not told and self._running:
                    told = True
                    say(f"stopping: {len(self._running)} runs save first; Ctrl-C again kills them")
                self._look_after(stop)
        finally:
            for running in self._running:  # a second Ctrl-C, or a bug of ours: nothing is left behind
                running.signal(signal.SIGKILL)
                _close_killed(running)

    def _title(self, job: Job) -> str:
        return f"{job.plan.run_id} {self._differs[job.plan.run_id]}".rstrip()

    def _may_start(self) -> bool:
        if not self._waiting or len(self._running) >= self._parallel:
            return False
        return _gpus(self._jobs[self._waiting[0]]) <= len(self._free_gpus)

    def _job_id(self, index: int) -> str:
        return f"{self._token}_{index}"

    def _start(self, index: int) -> None:
        job = self._jobs[index]
        gpus = [self._free_gpus.pop(0) for _ in range(_gpus(job))]
        hardware = job.resources.hardware
        threads = hardware.cpus_per_task or max(1, cores() // (hardware.tasks_per_node * self._parallel))
        job_id, restarts = self._job_id(index), self._restarts[index]
        env = process_env(self._env, self._snapshot, job, job_id=job_id, restarts=restarts, threads=threads, gpus=gpus)
        words = [WORKER, str(self._sweep.plans(self._token)), "--element", str(index)]
        ranks = [
            start_process(job, words, env, rank, cwd=self._snapshot.cwd, logs=self._logs)
            for rank in range(hardware.tasks_per_node)
        ]
        minutes = job.resources.hardware.time_min
        deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._running.append(_Running(index, job, ranks, gpus, deadline))
        self.codes.pop(job.plan.run_id, None)
        again = f" again ({self._restarts[index]})" if self._restarts[index] else ""
        say(f"[{index + 1}/{len(self._jobs)}] started{again} {self._title(job)}")

    def _wait(self, stop: StopFlag) -> None:
        """Until a rank ends, or something may be due."""
        with selectors.DefaultSelector() as selector:
            opened = [os.pidfd_open(p.pid) for r in self._running for p in r.ranks if p.poll() is None]
            try:
                for descriptor in opened:
                    selector.register(descriptor, selectors.EVENT_READ)
                selector.select(timeout=0 if stop and not all(r.asked for r in self._running) else 0.5)
            finally:
                for descriptor in opened:
                    os.close(descriptor)

    def _look_after(self, stop: StopFlag) -> None:
        now = time.monotonic()
        for running in list(self._running):
            codes = [rank.poll() for rank in running.ranks]
            if all(code is not None for code in codes):
                self._end(running, [code for code in codes if code is not None], bool(stop))
                continue
            if (stop or now >= running.deadline) and not running.asked:
                running.asked = True
                running.signal(signal.SIGTERM)
                running.kill_at = float("inf") if stop else now + _GRACE_S
            if any(codes):  # the others wait for it in vain
                running.kill_at = min(running.kill_at, now + _LINGER_S)
            if now >= running.kill_at:
                running.signal(signal.SIGKILL)

    def _end(self, running: _Running, codes: Sequence[int], stopping: bool) -> None:
        self._running.remove(running)
        self._free_gpus += running.gpus
        rundir = running.job.plan.rundir
        code = _worst(codes)
        if running.asked and code == 128 + signal.SIGTERM:  # it had not even begun
            code = ExitCode.STOPPED_SAVED
        if code != ExitCode.DONE and not rundir.is_locked():  # locked: another command trains it
            close_status(rundir, codes, code, running.began)
            if not stopping:
                code = self._judge(running, code)
        self.codes[rundir.path.name] = code
        status = rundir.read_status()
        state, reason = str(status.get("state") or "FAILED"), str(status.get("reason") or "")
        say(f"{state}: {self._title(running.job)}{': ' + reason if reason else ''}")

    def _judge(self, running: _Running, code: int) -> int:
        """Have a run that is not done wait for its next start, or give it up; returns the code that it ends with."""
        index = running.index
        code, again = settle(
            running.job.plan, self._job_id(index), code, self._restarts[index], out_of_time=running.asked
        )
        if again:
            self._restarts[index] += 1
            self._waiting.insert(0, index)
        return code


def run_all(
    sweep: SweepDir,
    jobs: Sequence[Job],
    snapshot: Snapshot,
    parallel: int | None,
    env: Mapping[str, str],
    logs: Path,
    packing: Packing | None = None,
) -> dict[str, float]:
    """Run ``jobs``, each of which was decided to begin, and wait for them; returns the metric of each by run_id.

    Args:
        parallel: most at a time; None: one for each set of GPUs, or as the cores allow.
        logs: folder of what ranks print.
        packing: have runs of one rank share workers; the others come after them.

    Raises:
        UserError: a job needs more than this machine has.
        RunsNotDone: some failed, or were stopped.
    """
    for job in jobs:
        require_room(job, env)
    if jobs:
        stop = StopFlag()
        stop.install(hang_up=True)
        shared, alone = _shared_and_alone(jobs, packing)
        codes: dict[str, int] = {}
        for shape in by_shape(shared):
            if packing and not stop:
                most = parallel or default_parallel(shape)
                codes |= PackedQueue(sweep, shape, snapshot, packing, most, env, logs).run(stop)
        if alone and not stop:
            queue = _Queue(sweep, alone, snapshot, parallel or default_parallel(alone), env, logs)
            queue.run(stop)
            codes |= queue.codes
        _tell(sweep, jobs, codes)
    return {job.plan.run_id: job.plan.rundir.metric() for job in jobs}


def _shared_and_alone(jobs: Sequence[Job], packing: Packing | None) -> tuple[list[Job], list[Job]]:
    """Jobs that share workers, and the others."""
    shared: list[Job] = []
    alone: list[Job] = []
    for job in jobs:
        (shared if packing and packing.takes(job.resources.hardware) else alone).append(job)
    return shared, alone


def require_room(job: Job, env: Mapping[str, str]) -> None:
    """See that this machine has what ``job`` needs.

    Raises:
        UserError: it has not.
    """
    if job.resources.hardware.nodes > 1:
        raise UserError(f"hardware.nodes={job.resources.hardware.nodes}: this machine is one node (allowed: 1)")
    if (wanted := _gpus(job)) > (gpus := len(visible_gpus(env)) if wanted else 0):
        raise UserError(f"hardware.gpus_per_node={wanted}: this machine shows {gpus} GPUs")


def _gpus(job: Job) -> int:
    return job.resources.gpus if job.resources.hardware.device == "cuda" else 0


def default_parallel(jobs: Sequence[Job]) -> int:
    """How many of ``jobs`` run at a time here where nobody says: on GPUs as those allow, else as the cores do."""
    if all(job.resources.hardware.device == "cuda" for job in jobs):
        return len(jobs)  # the GPUs are the limit
    hardware = [job.resources.hardware for job in jobs]
    most = max(h.tasks_per_node * (h.cpus_per_task or cores()) for h in hardware)
    return max(1, cores() // most)


def _worst(codes: Sequence[int]) -> ExitCode | int:
    """The code that says most: a failure of its own before one that followed from it, being killed last."""
    own = [code for code in codes if code > 0]
    if own:
        return min(own, key=lambda code: (code in _STOPPED, code))
    return 128 - min(codes) if min(codes) < 0 else ExitCode.DONE


def _close_killed(running: _Running) -> None:
    """Say so for a run that was killed: otherwise it would seem to go on."""
    for rank in running.ranks:
        rank.wait()
    rundir = running.job.plan.rundir
    if rundir.state() == "RUNNING" and not rundir.is_locked():
        rundir.say_state("PREEMPTED", "killed before it had saved; it goes on from its last checkpoint")


def _tell(sweep: SweepDir, jobs: Sequence[Job], codes: Mapping[str, int]) -> None:
    """Raise what the worst of the runs asks for; say where results are."""
    print(f"{sum(code == 0 for code in codes.values())} of {len(jobs)} runs COMPLETED: {sweep.path}")
    bad = {run: code for run, code in codes.items() if code != ExitCode.DONE}
    failed = [run for run, code in bad.items() if code not in _STOPPED]
    if failed:
        rundir = sweep.run(failed[0])
        reason = rundir.read_status().get("reason") or "it did not even begin, see what its worker printed"
        known = [bad[run] for run in failed if bad[run] in tuple(ExitCode)]
        words = f"{len(failed)} of {len(jobs)} runs failed; {rundir.path}: {reason}"
        raise RunsNotDone(words, ExitCode(max(known, default=1)))
    left = len(jobs) - len(codes)
    if bad or left:
        code = ExitCode(max(bad.values(), default=ExitCode.STOPPED_SAVED))
        raise RunsNotDone(f"stopped: {len(bad)} runs stopped, {left} not begun; the same command goes on", code)
