"""What our own files say of each run of a sweep, before Slurm is asked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.runtime.errors import UserError
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import Submission, SweepDir


@dataclass(frozen=True)
class OwnFiles:
    """What a run's own files say."""

    rundir: RunDir
    overrides: tuple[str, ...]
    job_id: str | None
    """Of its newest submission that Slurm took."""
    submission: Submission | None
    """That submission."""
    was_cancelled: bool
    """Whether ``launcher cancel`` was told to cancel that job."""
    cut_off: bool
    """Whether a submission of it is written down of which it is not known what became."""
    status: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    """Starts and ends of its attempts."""
    packed: Literal["waiting", "claimed", "ended"] | None = None
    """Where a packed run stands in its queue; ``job_id`` is its worker's while it is claimed, else that of all
    workers. None: it has a job of its own."""
    jobs: tuple[str, ...] = ()
    """Of a run that goes on by a chain: its jobs, of which ``job_id`` is the one that it has come to."""

    @property
    def is_packed(self) -> bool:
        """Whether its newest submission's runs share their jobs."""
        return self.submission is not None and self.submission.workers is not None

    @property
    def state(self) -> str | None:
        """As ``status.json`` has it."""
        state = self.status.get("state")
        return None if state is None else str(state)

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """One for each attempt."""
        return [event for event in self.events if event.get("event") == "start"]

    @property
    def started(self) -> bool:
        """Whether the newest submission's job has begun; of a packed run whether a worker of it has begun with it."""
        jobs = {str(start.get("job_id")) for start in self.starts}
        if self.packed == "waiting":
            return any(job.partition("_")[0] in self.arrays for job in jobs)
        return not jobs.isdisjoint(self.jobs or (self.job_id,))

    @property
    def arrays(self) -> frozenset[str | None]:
        """Slurm's numbers of the newest submission and of those that go on where it ends."""
        links = self.submission.links if self.submission else ()
        return frozenset({self.job_id, *(link.job_id for link in links)})

    @property
    def later_jobs(self) -> tuple[str, ...]:
        """Jobs of its chain after ``job_id``."""
        return self.jobs[self.jobs.index(self.job_id) + 1 :] if self.job_id in self.jobs else ()

    @property
    def failed(self) -> bool:
        """Whether the newest submission's job, not an earlier one, has written FAILED."""
        return self.state == "FAILED" and self.started

    @property
    def hosts(self) -> str:
        """Where its newest attempt runs or ran."""
        starts = self.starts
        hosts = starts[-1].get("hosts") if starts else None
        return ",".join(map(str, hosts)) if isinstance(hosts, list) else str(hosts or "")

    @property
    def parent(self) -> str:
        """Id of the run from whose state it began or will begin; empty: from scratch."""
        begun = (start["parent"] for start in self.starts if start.get("parent"))
        submitted = self.submission.parents if self.submission else {}
        return str(next(begun, None) or submitted.get(self.rundir.path.name, ""))

    @property
    def needs_slurm(self) -> bool:
        """Whether Slurm may know more. Of a run that FAILED too: Slurm may have requeued its job (a node failed)."""
        return self.job_id is not None and self.state != "COMPLETED" and self.packed != "ended"

    @property
    def slurm_conf(self) -> str | None:
        """``SLURM_CONF`` of the newest submission; None: the default cluster."""
        return self.submission.slurm_conf if self.submission else None

    def owns(self, script: str) -> bool:
        """Whether ``script``, a job's in Slurm's words, is that of the newest submission: numbers differ by cluster."""
        if self.submission is None or script in ("", "(null)"):
            return True
        return Path(script).stem in {link.token for link in self.submission.links}

    def silent_for(self, seconds: float) -> bool:
        """Whether there was no sign of life for so long."""
        heartbeat = self.status.get("heartbeat")
        return time.time() - (heartbeat if isinstance(heartbeat, int | float) else 0) > seconds

    def again(self) -> OwnFiles:
        """The same run, its files read anew."""
        return dataclasses.replace(self, status=_status(self.rundir), events=self.rundir.attempt_events())


@dataclass(frozen=True)
class Places:
    """Where the runs of one packed submission stand in its queue; read once for all of them."""

    entries: Mapping[str, str]
    """The entry of each run."""
    claims: Mapping[str, str]
    """The worker of each entry that is claimed."""
    ended: Collection[str]

    @staticmethod
    def of(sweep: SweepDir, submission: Submission) -> Places:
        """Those of ``submission``."""
        queue = Queue(sweep.queue(submission.token))
        entries = {run: entry_name(index) for index, run in enumerate(submission.runs)}
        return Places(entries, queue.claims(), frozenset(queue.list_ended()))  # in the order in which entries move

    def put(self, own: OwnFiles) -> OwnFiles:
        """``own`` with its place, and the job that it stands for."""
        entry = self.entries[own.rundir.path.name]
        if entry in self.claims:
            return dataclasses.replace(own, packed="claimed", job_id=self.claims[entry])
        if entry not in self.ended:
            return dataclasses.replace(own, packed="waiting")
        started = own.starts[-1].get("job_id") if own.starts else own.job_id
        return dataclasses.replace(own, packed="ended", job_id=str(started))


def own_files(sweep: SweepDir, only: Collection[str] | None = None) -> list[OwnFiles]:
    """What the files of each run of ``sweep`` say, in the order in which the runs were asked for."""
    members = {run_id: tuple(overrides) for run_id, overrides in sweep.read_members().items()}
    for run in sweep.list_runs():  # those that were trained without a queue
        members.setdefault(run, ())
    jobs: dict[str, tuple[str, Submission]] = {}
    cut_off: set[str] = set()
    submissions = sweep.read_submissions()
    for submission in submissions:
        if submission.job_id and not submission.withdrawn:
            jobs |= {run: (job, submission) for run, job in submission.jobs()}
            cut_off.difference_update(submission.runs)
        elif not submission.withdrawn:
            cut_off.update(submission.runs)
    cancelled = sweep.read_cancelled()
    workers = {job: s for s in submissions if s.is_open and s.job_id for job in s.job_names()}
    chained = (s for s in submissions if s.successors and s.workers is None)
    chains = {s.token: [dict(link.jobs()) for link in s.links] for s in chained}
    places = {s.token: Places.of(sweep, s) for _, s in jobs.values() if s.workers is not None}
    found = []
    for run_id, overrides in members.items():
        if only is None or run_id in only:
            rundir = sweep.run(run_id)
            job_id, submission_of = jobs.get(run_id, (None, None))
            status, events = _status(rundir), rundir.attempt_events()
            own = OwnFiles(
                rundir, overrides, job_id, submission_of, job_id in cancelled, run_id in cut_off, status, events
            )
            if submission_of and submission_of.token in chains:
                own = _in_chain(own, [names[run_id] for names in chains[submission_of.token]], cancelled)
            if submission_of and own.is_packed:
                own = places[submission_of.token].put(own)
                own = dataclasses.replace(own, was_cancelled=own.job_id in cancelled)  # its worker
            elif submission_of is None and workers:
                own = _of_worker(own, workers, cancelled)
            found.append(own)
    return found


def _in_chain(own: OwnFiles, jobs: Sequence[str], cancelled: Collection[str]) -> OwnFiles:
    """``own`` with the job of its chain that it has come to: the last one that began, or that was told to go on."""
    known = [str(event.get("next") or event.get("job_id")) for event in own.events]
    job = next((job for job in reversed(jobs) if job in known), jobs[0])
    return dataclasses.replace(own, job_id=job, jobs=tuple(jobs), was_cancelled=job in cancelled)


def _of_worker(own: OwnFiles, workers: Mapping[str, Submission], cancelled: Collection[str]) -> OwnFiles:
    """A run that a worker chose for itself: its newest start tells which."""
    job = str(own.starts[-1].get("job_id")) if own.starts else ""
    submission = workers.get(job)
    if submission is None or submission.job_id is None:
        return own
    packed: Literal["waiting", "claimed", "ended"] = "claimed" if own.state == "RUNNING" else "ended"
    if own.state in ("PREEMPTED", "REQUEUED") and job not in cancelled:  # any worker goes on with it
        packed, job = "waiting", submission.job_id
    return dataclasses.replace(own, packed=packed, job_id=job, submission=submission, was_cancelled=job in cancelled)


def _status(rundir: RunDir) -> Mapping[str, Any]:
    try:
        return rundir.read(rundir.status) or {}
    except UserError as error:  # one file that cannot be read hides no other run
        return {"reason": str(error)}
