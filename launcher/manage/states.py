"""What became of each run: told by our own files first, then by one look at Slurm for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from launcher.manage.own_files import OwnFiles, own_files
from launcher.runtime.bad_nodes import Exclusion, exclusions
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm
from launcher.slurm_text import QueuedJob

ACTIVE = ("SUBMITTED", "RUNNING", "REQUEUED", "STALLED")
"""States of a run that a job or a process is there for, or seems to be."""
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_GOING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_BROKEN = ("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL")
"""Ends that make srun ask the other ranks to stop: that they saved does not make it a stop on request."""
_WORDS = {
    "TIMEOUT": "out of time", "NODE_FAIL": "its node failed", "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted and not requeued", "BOOT_FAIL": "its node did not boot", "DEADLINE": "past its deadline",
    "FAILED": "its job failed; logs may tell why",
    "COMPLETED": "the job ended without an error and without a result",
}  # fmt: skip
GONE = "its process is gone; the same command goes on"
"""Reason of a run that is STALLED and that no process is there for."""
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
    total_steps: int | None = None
    """The step that it ends with, where its task has said so."""
    loss: float | None = None
    samples_per_s: float | None = None
    attempts: int = 0
    job_id: str | None = None
    node: str = ""
    reason: str = ""
    """Why it waits, or how it ended."""
    start: str = ""
    """When it is expected to start, where it waits and Slurm knows; local time of the cluster."""
    waits_for: str = ""
    """Slurm's own word on why its job waits."""
    excluded: tuple[Exclusion, ...] = ()
    """The nodes that it avoids, and why."""
    slurm: str = ""
    """Slurm's own state of its job; empty: it was not asked, or has forgotten it."""
    parent: str = ""
    """Id of the run from whose state it begins."""

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more by itself: no job and no process is there for it."""
        return not self.is_active or (self.state == "STALLED" and self.job_id is None)

    @property
    def is_active(self) -> bool:
        """Whether a job or a process is there for it, or seems to be."""
        return self.state in ACTIVE and self.reason != GONE


@dataclass(frozen=True)
class SlurmsWord:
    """What Slurm says of many jobs, asked once."""

    queue: Mapping[str, QueuedJob] = field(default_factory=dict)
    past: Mapping[str, str] = field(default_factory=dict)
    """Final states of jobs that squeue has forgotten; empty without accounting."""
    known: bool = False
    """Whether Slurm was asked and answered."""

    def job(self, own: OwnFiles) -> QueuedJob | None:
        """A run's job in the queue: one of its number and with its script, not another cluster's of that number.

        Of a packed run that waits it is a worker that may take it, one that runs if there is any.
        """
        name = own.job_id or ""
        if own.packed == "waiting":
            ours = own.arrays
            workers = [j for j in self.queue.values() if j.job_id.partition("_")[0] in ours and own.owns(j.command)]
            live = [worker for worker in workers if worker.state in (*_GOING, *_WAITING)]
            return min(live, key=lambda worker: worker.state in _WAITING, default=None)
        array = name.partition("_")[0]
        if name not in self.queue and not own.started:
            name = array  # squeue's one line for all elements that were cancelled before they began
        job = self.queue.get(name)
        return job if job and own.owns(job.command) else None

    def state(self, own: OwnFiles) -> str:
        """Slurm's state of a run's job; empty: it says nothing."""
        job = self.job(own)
        return job.state if job else self.past.get(own.job_id or "", "")


def run_states(sweep: SweepDir, slurm: Slurm | None, only: Collection[str] | None = None) -> list[RunState]:
    """The state of each run of ``sweep``, in the order in which they were asked for.

    Args:
        slurm: None: Slurm is not asked, and what was submitted and has not begun is SUBMITTED.
        only: these runs alone.

    Raises:
        SlurmError: Slurm does not answer.
    """
    runs = own_files(sweep, only)
    word = ask(slurm, runs) if slurm else SlurmsWord()
    return [row(own, word) for own in runs]


def ask(slurm: Slurm, runs: Iterable[OwnFiles]) -> SlurmsWord:
    """One call of squeue for all of ``runs``, and one of sacct for those that it has forgotten; none if none needs it.

    Raises:
        SlurmError: Slurm does not answer.
    """
    asked = [own for own in runs if own.needs_slurm]
    queue: Mapping[str, QueuedJob] = slurm.queue() if asked else {}
    forgotten = [str(own.job_id) for own in asked if own.job_id not in queue and not own.failed]
    return SlurmsWord(queue, slurm.history(forgotten) if forgotten else {}, known=True)


def row(own: OwnFiles, word: SlurmsWord) -> RunState:
    """One run's row, from what its files say and what Slurm says."""
    slurms = word.state(own)
    if own.needs_slurm and word.known and slurms not in (*_WAITING, *_GOING):
        own = own.again()  # its job may have ended well after its files were read and before Slurm was asked
        own = _handed_on(_left_to_others(own, word, slurms), word, slurms)
        slurms = word.state(own)
    job = word.job(own)
    state, reason = _decide(own, slurms, word.known)
    waits = state in ("SUBMITTED", "REQUEUED") and job is not None and job.state in _WAITING
    waits_for = job.reason.replace("None", "") if waits and job else ""
    if waits and own.job_id in own.jobs[1:]:
        reason = f"goes on in job {own.job_id}" + (f" ({waits_for})" if waits_for else "")
    else:
        reason = waits_for or reason
    return RunState(
        run_id=own.rundir.path.name,
        path=str(own.rundir.path),
        overrides=own.overrides,
        state=state,
        step=own.status.get("step"),
        total_steps=own.status.get("total_steps"),
        loss=own.status.get("loss"),
        samples_per_s=own.status.get("samples_per_s"),
        attempts=len(own.starts),
        job_id=own.job_id,
        node=own.hosts if own.packed == "waiting" else job.nodes if job and job.nodes else own.hosts,
        reason=reason,
        waits_for=waits_for,
        start=job.start if waits and job and job.start != "N/A" else "",
        excluded=tuple(exclusions(own.events)),
        slurm=slurms,
        parent=own.parent,
    )


def _left_to_others(own: OwnFiles, word: SlurmsWord, slurms: str) -> OwnFiles:
    """``own``; where its worker is gone for good and others live, it waits for them, who take it last."""
    lives = not slurms and own.state == "RUNNING" and not own.silent_for(_QUIET_S)  # started by hand, say
    if own.packed != "claimed" or own.submission is None or own.was_cancelled or lives:
        return own
    if own.state in ("COMPLETED", "FAILED", "CANCELLED"):
        return own
    waiting = dataclasses.replace(own, packed="waiting", job_id=own.submission.job_id)
    return waiting if word.job(waiting) else own


def _handed_on(own: OwnFiles, word: SlurmsWord, slurms: str) -> OwnFiles:
    """``own``; where its job has ended and another one of its chain is there for it, that one's."""
    over = own.state in ("COMPLETED", "CANCELLED") or own.failed or own.was_cancelled or slurms == "CANCELLED"
    later = () if over else own.later_jobs
    there = (name for name in later if name in word.queue and word.queue[name].state in (*_WAITING, *_GOING))
    return dataclasses.replace(own, job_id=next(there, own.job_id))


def _decide(own: OwnFiles, slurms: str, known: bool) -> tuple[str, str]:
    """State and reason from what our files say and what Slurm says (``slurms``; empty: nothing)."""
    said = str(own.status.get("reason") or "")
    if own.state == "COMPLETED":
        return "COMPLETED", said
    if own.packed == "ended" and own.state == "RUNNING":  # left to another process, which nobody looks after
        return _without_job(own, said)
    if own.packed == "ended":
        return own.state or "FAILED", said or ("" if own.state else "left its queue without a word")
    if own.job_id is None:
        return _without_job(own, said)
    if own.packed == "waiting":
        if known and slurms not in (*_WAITING, *_GOING):
            return "PREEMPTED", "none of its workers is left; the same command goes on"
        return ("REQUEUED" if own.started else "SUBMITTED"), ""
    if slurms in _WAITING:
        return ("REQUEUED" if own.started else "SUBMITTED"), ""
    if slurms in _GOING and not (own.failed and slurms == "COMPLETING"):
        if own.state == "PREEMPTED" and own.started:
            return "RUNNING", "saved; waits for Slurm to end or requeue it"
        if own.state == "REQUEUED" and own.started:
            return "REQUEUED", said
        stalled = own.state == "RUNNING" and own.started and own.silent_for(_STALLED_S)
        return ("STALLED", "no sign of life for ten minutes") if stalled else ("RUNNING", "")
    if own.was_cancelled:
        return "CANCELLED", said
    if own.failed:
        return "FAILED", said
    if slurms == "CANCELLED":
        return "CANCELLED", said
    if not slurms:
        return _unknown_to_slurm(own, said) if known else _slurm_unknown(own, said)
    if own.state == "REQUEUED" and own.started and slurms in ("COMPLETED", "FAILED"):
        return "PREEMPTED", f"{said}; could not be requeued, the same command goes on"
    if own.state == "PREEMPTED" and own.started and slurms not in _BROKEN:
        # Where it saved and then left by itself, Slurm takes its exit code for a failure.
        return "PREEMPTED", said if slurms in ("COMPLETED", "FAILED") else _WORDS.get(slurms, said)
    return "FAILED", _WORDS.get(slurms, f"Slurm says {slurms}")


def _unknown_to_slurm(own: OwnFiles, said: str) -> tuple[str, str]:
    """Of a run whose job Slurm has forgotten."""
    if own.state == "PREEMPTED":
        return "PREEMPTED", said
    if own.state == "RUNNING" and not own.silent_for(_QUIET_S):
        return "RUNNING", "Slurm does not know its job, but it gives signs of life"
    if own.state == "REQUEUED":
        return "CANCELLED", "left the queue before it went on"
    if own.started:  # RUNNING, or nothing at all: whatever ended it left no word
        return "FAILED", "its job is gone and left no word: killed, or its node was lost"
    return "CANCELLED", "left the queue before it began"


def _slurm_unknown(own: OwnFiles, said: str) -> tuple[str, str]:
    """Of a run with a job where Slurm was not asked, or did not answer."""
    if not own.started:
        return ("PREEMPTED", said) if own.state == "PREEMPTED" else ("SUBMITTED", "")
    if own.state == "RUNNING" and own.silent_for(_STALLED_S):
        return "STALLED", "no sign of life for ten minutes"
    return own.state or "RUNNING", said


def _without_job(own: OwnFiles, said: str) -> tuple[str, str]:
    """Of a run that no job of Slurm's is there for."""
    if own.state is None:
        return "PLANNED", "its submission was cut off; the same command settles it" if own.cut_off else said
    if own.state == "RUNNING" and own.silent_for(_QUIET_S) and not own.rundir.is_locked():
        return "STALLED", GONE
    return own.state, said
