"""Submitting: frozen plans on disk first, then one array for each resource shape, and a receipt for each run.

Before sbatch is called an *intent* is written down: a token, and the runs. The batch script's name holds the token, so
that a command that was cut off is cleared up by the next one: what Slurm has is adopted, what it has not is withdrawn
and submitted again. Nothing is submitted twice.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.manage.states import run_states
from launcher.runtime.errors import UserError
from launcher.runtime.files import write_json
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.sweepdir import Submission, SweepDir, write_plans
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError, SubmitLimit, with_patience
from launcher.submission.batch import Batch, script_text
from launcher.submission.jobs import Job, Receipt, by_shape
from launcher.submission.packing import Packing
from launcher.submission.reconcile import require_same_science
from launcher.submission.snapshot import Snapshot
from launcher.submission.successors import REQUEUE, Continuation, follow, hint
from launcher.submission.variables import export_option


def submit(
    sweep: SweepDir,
    jobs: Sequence[Job],
    slurm: Slurm,
    snapshot: Snapshot,
    lock: int,
    logs: Path,
    packing: Packing | None = None,
    continuation: Continuation = REQUEUE,
) -> list[Receipt]:
    """Submit ``jobs``, each of which was decided to begin; the caller holds the sweep's lock and has settled it.

    Args:
        lock: descriptor of the lock, which sbatch keeps open.
        logs: folder of what jobs print.
        packing: have runs of one rank share jobs.
        continuation: how runs go on whose jobs are ended.

    Raises:
        SlurmAway: slurmctld does not answer; what is not submitted stays PLANNED.
        SlurmError: Slurm would not take a job of this kind.
    """
    answer: dict[str, Receipt] = {}
    limit = largest_array(slurm) if jobs else 0
    shapes = by_shape(jobs)
    counts = continuation.successors([shape[0].resources for shape in shapes], slurm)
    batchers = [
        _Batcher(sweep, shape, snapshot, slurm, lock, logs, packing, successors=count)
        for shape, count in zip(shapes, counts, strict=True)
    ]
    for batcher in batchers:
        answer |= {receipt.run_id: receipt for receipt in batcher.submit(limit)}
    for batcher in batchers:  # last: where Slurm takes no more, runs come before successors
        batcher.add_successors()
    return [answer[job.plan.run_id] for job in jobs]


@dataclass(frozen=True)
class OwnWorkers:
    """Jobs that find out for themselves what to run."""

    command: tuple[str, ...]
    """The module that each runs, and its options."""
    prepare: Callable[[str], None]
    """Called with the submission's token before Slurm hears of it: writes what they need besides a plan."""


def submit_workers(
    sweep: SweepDir, job: Job, workers: OwnWorkers, count: int, slurm: Slurm, snapshot: Snapshot, lock: int, logs: Path
) -> Submission:
    """Submit ``count`` workers as one array, fewer where Slurm takes no more; the caller holds the sweep's lock.

    The submission names no runs: those that a worker trains are told by their attempts. ``job`` says what all of them
    have in common; its plan is the one in their file, and is not run.

    Raises:
        SlurmError: as ``submit``; and where Slurm takes not one.
    """
    settle(sweep, slurm)
    batcher = _Batcher(sweep, [job], snapshot, slurm, lock, logs, None, workers)
    count = min(count, largest_array(slurm))
    while True:
        try:
            return batcher.send([job], count)
        except SubmitLimit:
            if count == 1:
                raise
            count //= 2


def require_accepted(sweep: SweepDir, jobs: Sequence[Job], slurm: Slurm, snapshot: Snapshot, logs: Path) -> None:
    """See that Slurm would take a job of each resource shape; writes nothing.

    Raises:
        SlurmAway: slurmctld does not answer.
        SlurmError: Slurm would not take it, now or ever.
    """
    for shape in by_shape(jobs):
        resources = shape[0].resources
        text = script_text(Batch.of(sweep, "test", resources, 1, logs), snapshot)
        try:
            test_script(slurm, text)
        except SlurmAway:
            raise
        except SubmitLimit:
            continue  # not now: they stay planned
        except SlurmError as error:
            raise SlurmError(f"{error} (asked for: {resources}){hint(error)}") from None


def test_script(slurm: Slurm, text: str) -> str:
    """What ``sbatch --test-only`` says to a script."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as script:
        script.write(text)
        script.flush()
        return slurm.test(Path(script.name))


def settle(sweep: SweepDir, slurm: Slurm) -> None:
    """Find out what became of submissions that were cut off: adopt those that Slurm has, withdraw the others.

    Raises:
        UserError: runs of this sweep may be jobs of another cluster.
    """
    _require_same_cluster(sweep, slurm)
    for token in (submission.token for submission in sweep.cut_off()):
        job_id = _started_as(sweep, token) or slurm.submitted_as(sweep.script(token))
        if job_id is not None:
            sweep.add_event("submitted", token, job_id=job_id)
        else:
            _withdraw(sweep, token, "Slurm has no such job")


def _require_same_cluster(sweep: SweepDir, slurm: Slurm) -> None:
    elsewhere: dict[str, str | None] = {}
    for submission in sweep.read_submissions():
        if not submission.withdrawn:
            elsewhere |= dict.fromkeys(submission.runs, submission.slurm_conf)
    elsewhere = {run: conf for run, conf in elsewhere.items() if conf != slurm.slurm_conf}
    for state in run_states(sweep, None, only=elsewhere) if elsewhere else []:
        if state.is_active:
            conf = elsewhere[state.run_id]
            raise UserError(
                f"run {state.path}: is {state.state} as a job of another cluster (SLURM_CONF={conf or 'not set'}); "
                "cancel it there, or choose launch.name=…"
            )


def _started_as(sweep: SweepDir, token: str) -> str | None:
    mark = sweep.started(token)
    return mark.read_text().strip() or None if mark.exists() else None


def _withdraw(sweep: SweepDir, token: str, reason: str) -> None:
    sweep.withdrawal(token).touch()  # first: should Slurm have it after all, its jobs end at once
    sweep.add_event("withdrawn", token, reason=reason)


def largest_array(slurm: Slurm) -> int:
    """Most elements of one array: MaxArraySize limits the index, which starts at 0 (slurm.conf(5))."""
    value = slurm.config().get("MaxArraySize", "")
    if not value.isdigit() or int(value) < 1:
        raise SlurmError(f"scontrol show config: MaxArraySize={value!r} is no number")
    return int(value)


class _Batcher:
    """Submits the runs of one resource shape."""

    def __init__(
        self,
        sweep: SweepDir,
        jobs: Sequence[Job],
        snapshot: Snapshot,
        slurm: Slurm,
        lock: int,
        logs: Path,
        packing: Packing | None,
        own: OwnWorkers | None = None,
        successors: int = 0,
    ) -> None:
        self._sweep, self._jobs, self._snapshot, self._slurm = sweep, list(jobs), snapshot, slurm
        self._lock, self._logs, self._own = lock, logs, own
        self._packing = packing if packing and packing.takes(jobs[0].resources.hardware) else None
        self._successors, self._sent = successors, dict[Submission, Sequence[Job]]()

    def submit(self, limit: int) -> Iterator[Receipt]:
        """Submit in arrays of at most ``limit`` elements, smaller ones where Slurm takes no more jobs of this user."""
        if self._packing is not None:
            yield from self._submit_packed(self._packing.jobs(len(self._jobs), limit))
            return
        left, size, reason = self._jobs, limit, ""
        while left and size:
            chunk = left[: min(size, limit)]
            try:
                yield from self._submit(chunk)
                left = left[len(chunk) :]
            except SubmitLimit as error:
                size, reason = len(chunk) // 2, str(error)
        yield from (Receipt(job.plan.run_id, "PLANNED", None, new=False, reason=reason) for job in left)

    def _submit_packed(self, workers: int) -> list[Receipt]:
        """Submit all runs for ``workers`` jobs, or fewer where Slurm takes no more of this user."""
        reason = ""
        while workers:
            try:
                return self._submit(self._jobs, workers)
            except SubmitLimit as error:
                workers, reason = workers // 2, str(error)
        return [Receipt(job.plan.run_id, "PLANNED", None, new=False, reason=reason) for job in self._jobs]

    def _submit(self, jobs: Sequence[Job], workers: int | None = None) -> list[Receipt]:
        """``workers``: jobs that share the runs; None: each has one of its own."""
        sent = self.send(jobs, workers)
        self._sent[sent] = jobs
        return [Receipt(run, "SUBMITTED", name, new=True) for run, name in sent.jobs()]

    def add_successors(self) -> None:
        """Submit the successors of each array that was sent, as many of them as Slurm takes."""

        def send(last: Submission, head: Submission) -> Submission:
            return self.send(self._sent[head], head.workers, head, (f"--dependency=afterany:{last.job_id}",))

        follow(list(self._sent), self._successors, send)

    def send(
        self, jobs: Sequence[Job], workers: int | None, head: Submission | None = None, options: Sequence[str] = ()
    ) -> Submission:
        """As ``_submit``; one call of sbatch, once it had an answer. ``head``: it goes on with what that began."""
        token = ""

        def call() -> str:
            nonlocal token
            if token:  # no answer: what Slurm has is taken; what reaches it late finds its token withdrawn, and ends
                if found := self._slurm.once().submitted_as(self._sweep.script(token)):
                    return found
                _withdraw(self._sweep, token, "sbatch had no answer")
            token = self._write_down(jobs, workers, head)
            resources = self._jobs[0].resources
            slurm = self._slurm.handing_on(resources.site.known_secrets)
            options_too = (*options, *export_option(resources, slurm.export))
            return slurm.sbatch(self._sweep.script(token), options_too, keep_open=(self._lock,))

        try:
            job_id = with_patience(call)
        except SlurmAway as error:  # the intent stays: the next command finds out what became of it
            raise SlurmAway(f"{error}; the runs stay planned, the same command submits them") from None
        except SlurmError as error:
            _withdraw(self._sweep, token, str(error))
            raise
        self._sweep.add_event("submitted", token, job_id=job_id)
        return Submission(token, self._runs(jobs), self._slurm.slurm_conf, job_id=job_id, workers=workers)

    def _runs(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        return () if self._own else tuple(job.plan.run_id for job in jobs)

    def _write_down(self, jobs: Sequence[Job], workers: int | None, head: Submission | None) -> str:
        """Plans, script and intent of a new submission, durably; returns its token. Plans and queue may be a head's."""
        token, runs = uuid.uuid4().hex[:12], self._runs(jobs)
        if head is None:
            write_plans(self._sweep.plans(token), (job.plan.to_json() for job in jobs))
        if workers is not None and head is None:
            Queue(self._sweep.queue(token)).fill(entry_name(index) for index in range(len(runs)))
        if self._own is not None:
            self._own.prepare(token)
        self._write_script(token, workers or len(jobs), head)
        logs = None if self._logs == self._sweep.job_logs else str(self._logs)
        conf = self._slurm.slurm_conf
        children = {j.plan.run_id: j.plan.parent_id for j in jobs if j.plan.parent_id}
        said = ({"parents": children} if children else {}) | ({"follows": head.token} if head else {})
        self._sweep.add_event("intent", token, runs=list(runs), slurm_conf=conf, logs=logs, workers=workers, **said)
        return token

    def _write_script(self, token: str, count: int, head: Submission | None) -> None:
        sweep, resources = self._sweep, self._jobs[0].resources
        parents = {Path(job.plan.parent.path) for job in self._jobs if job.plan.parent}
        batch = Batch.of(sweep, token, resources, count, self._logs)
        batch = replace(batch, chained=self._successors > 0, parents=tuple(sorted(parents)))
        if head is not None:
            batch = replace(batch, plans=sweep.plans(head.token), follows=True)
        if self._packing is not None:
            batch = batch.packed(self._packing.beside)
        if self._own is not None:
            batch = replace(batch, worker=self._own.command, door=("--packed",))
        script = sweep.script(token)
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(script_text(batch, self._snapshot), encoding="utf-8")


def claim_folders(jobs: Sequence[Job]) -> None:
    """Write each new run's ``plan.json``, so that its folder is its own before any job starts.

    Raises:
        UserError: a folder belongs to a run of another science.
    """
    for job in jobs:
        rundir = job.plan.rundir
        if rundir.plan.exists():
            require_same_science(job.plan)
            continue
        rundir.path.mkdir(parents=True, exist_ok=True)
        # Not synced a thousand times: what jobs read are the plans of their submission, which are.
        write_json(rundir.plan, job.plan.to_json(), durable=False)
