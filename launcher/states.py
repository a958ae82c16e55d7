"""What became of each run: told by our own files first, then by one call to Slurm for all of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import QueuedJob, Slurm

ACTIVE = ("SUBMITTED", "RUNNING", "REQUEUED", "STALLED")
"""States of a run that a job or a process is there for, or seems to be."""
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_GOING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_WORDS = {
    "TIMEOUT": "out of time", "NODE_FAIL": "its node failed", "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted and not requeued", "BOOT_FAIL": "its node did not boot", "DEADLINE": "past its deadline",
    "COMPLETED": "the job ended without an error and without a result",
}  # fmt: skip
_GONE = "its process is gone; the same command goes on"
_QUIET_S = 60.0
"""Seconds without a sign of life after which a process on this machine is looked for."""
_STALLED_S = 600.0
"""Seconds without a sign of life after which a running job counts as stalled."""


@dataclass(frozen=True)
class RunState:
    """One row of ``launcher status``."""

    run_id: str
    path: str
    overrides: tuple[str, ...]
    state: str
    """PLANNED, SUBMITTED, RUNNING, PREEMPTED, REQUEUED, COMPLETED, FAILED, CANCELLED or STALLED."""
    step: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    attempts: int = 0
    job_id: str | None = None
    node: str = ""
    reason: str = ""
    """Why it waits, or how it ended."""
    start: str = ""
    """When it is expected to start, where it waits and Slurm knows; local time of the cluster."""

    @property
    def is_active(self) -> bool:
        """Whether a job or a process is there for it, or seems to be."""
        return self.state in ACTIVE and self.reason != _GONE


@dataclass(frozen=True)
class _Own:
    """What a run's own files say."""

    rundir: RunDir
    overrides: tuple[str, ...]
    status: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    job_id: str | None
    """Of its newest submission."""

    @property
    def state(self) -> str | None:
        state = self.status.get("state")
        return None if state is None else str(state)

    @property
    def started(self) -> bool:
        """Whether the newest submission's job has begun."""
        return any(start.get("job_id") == self.job_id for start in self.starts)

    @property
    def needs_slurm(self) -> bool:
        """Whether Slurm may know more."""
        done = self.state == "COMPLETED" or (self.state == "FAILED" and self.started)
        return self.job_id is not None and not done

    def silent_for(self, seconds: float) -> bool:
        return time.time() - float(self.status.get("heartbeat") or 0) > seconds


def run_states(sweep: SweepDir, slurm: Slurm | None, only: Collection[str] | None = None) -> list[RunState]:
    """The state of each run of ``sweep``, in the order in which they were asked for.

    Args:
        slurm: None: Slurm is not asked, and what was submitted and has not begun is SUBMITTED.
        only: these runs alone.

    Raises:
        SlurmError: Slurm does not answer.
    """
    runs = _own_files(sweep, only)
    cancelled = sweep.read_cancelled()
    asked = [own.job_id for own in runs if own.needs_slurm and own.job_id is not None]
    queue: Mapping[str, QueuedJob] = slurm.queue() if slurm and asked else {}
    forgotten = [job_id for job_id in asked if job_id not in queue]
    past = slurm.history(forgotten) if slurm and forgotten else {}
    return [_row(own, queue, past, cancelled, known=slurm is not None) for own in runs]


def _own_files(sweep: SweepDir, only: Collection[str] | None) -> list[_Own]:
    members = {run_id: tuple(overrides) for run_id, overrides in sweep.read_members().items()}
    for plan in sorted(sweep.path.glob("*/plan.json")):  # runs that were trained without a queue
        members.setdefault(plan.parent.name, ())
    jobs = {run: job for s in sweep.read_submissions() if s.job_id and not s.withdrawn for run, job in s.jobs()}
    found = []
    for run_id, overrides in members.items():
        if only is None or run_id in only:
            rundir = sweep.run(run_id)
            starts = [event for event in rundir.attempt_events() if event.get("event") == "start"]
            found.append(_Own(rundir, overrides, rundir.read(rundir.status) or {}, starts, jobs.get(run_id)))
    return found


def _row(
    own: _Own, queue: Mapping[str, QueuedJob], past: Mapping[str, str], cancelled: Collection[str], known: bool
) -> RunState:
    job = queue.get(own.job_id or "")
    slurms = job.state if job else past.get(own.job_id or "", "")
    state, reason = _decide(own, slurms, own.job_id in cancelled, known)
    waits = state in ("SUBMITTED", "REQUEUED") and job is not None
    last = own.starts[-1] if own.starts else {}
    return RunState(
        run_id=own.rundir.path.name,
        path=str(own.rundir.path),
        overrides=own.overrides,
        state=state,
        step=own.status.get("step"),
        loss=own.status.get("loss"),
        samples_per_s=own.status.get("samples_per_s"),
        attempts=len(own.starts),
        job_id=own.job_id,
        node=job.nodes if job and job.nodes else ",".join(last.get("hosts") or ()),
        reason=job.reason if waits and job else reason,
        start=job.start if waits and job and job.start != "N/A" else "",
    )


def _decide(own: _Own, slurms: str, was_cancelled: bool, known: bool) -> tuple[str, str]:
    """State and reason from what our files say and what Slurm says (``slurms``; empty: nothing)."""
    said = str(own.status.get("reason") or "")
    if own.state == "COMPLETED":
        return "COMPLETED", said
    if own.job_id is None:
        return _without_job(own, said)
    if slurms in _WAITING:
        return ("REQUEUED" if own.started else "SUBMITTED"), ""
    if own.state == "FAILED" and own.started:
        return "FAILED", said
    if slurms in _GOING:
        stalled = own.state == "RUNNING" and own.started and own.silent_for(_STALLED_S)
        return ("STALLED", "no sign of life for ten minutes") if stalled else ("RUNNING", "")
    if slurms == "CANCELLED" or was_cancelled:
        return "CANCELLED", said
    if not slurms:
        if own.started or own.state == "PREEMPTED":
            return _without_job(own, said)
        return ("CANCELLED", "left the queue before it began") if known else ("SUBMITTED", "")
    if own.state == "PREEMPTED" and own.started:
        return "PREEMPTED", _WORDS.get(slurms, said)
    return "FAILED", _WORDS.get(slurms, f"Slurm says {slurms}")


def _without_job(own: _Own, said: str) -> tuple[str, str]:
    """Of a run that no job of Slurm's is there for."""
    if own.state is None:
        return "PLANNED", ""
    if own.state == "RUNNING" and own.silent_for(_QUIET_S) and not own.rundir.is_locked():
        return "STALLED", _GONE
    return own.state, said
