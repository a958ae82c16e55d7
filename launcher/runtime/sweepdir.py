"""The sweep directory: the only place that knows the names of a sweep's files, and what was asked and submitted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from launcher.runtime.errors import UserError
from launcher.runtime.files import append_json_line, read_json_lines, sync_folder, write_atomic, write_json
from launcher.runtime.rundir import RunDir


@dataclass(frozen=True)
class Submission:
    """One call of sbatch: the runs of one array (or of one plain job), in the order of its elements."""

    token: str
    """Names it before Slurm does: the file names of its plans and its batch script hold it."""
    runs: tuple[str, ...]
    slurm_conf: str | None
    """``SLURM_CONF`` that it was submitted with; None: the cluster that commands reach by default."""
    job_id: str | None = None
    """Slurm's number; None while it is not known whether sbatch got through."""
    withdrawn: bool = False
    """It never reached Slurm, and its runs may be submitted again."""
    logs: str | None = None
    """Folder of what its jobs print; None: the sweep's own (``SweepDir.job_logs``)."""
    time: str = ""
    """When it was about to be submitted, UTC."""
    replaced: frozenset[str] = frozenset()
    """Runs that were moved aside since: its jobs are theirs, not those of the runs that took their places."""
    parents: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Of those of its runs that begin from another one's state the id of that."""
    workers: int | None = None
    """Jobs that share the runs, which wait in a queue (``SweepDir.queue``); None: each run has a job of its own."""

    successors: tuple[Submission, ...] = ()
    """Submissions of the same runs that go on where this one ends (``launch.continue=chain``): each waits for the one
    before. They have its plans, and its queue."""

    @property
    def links(self) -> tuple[Submission, ...]:
        """The submission and those of its successors that Slurm took, in their order."""
        return (self, *(link for link in self.successors if link.job_id and not link.withdrawn))

    @property
    def is_open(self) -> bool:
        """Whether its workers find out for themselves what to run: it names no runs."""
        return self.workers is not None and not self.runs

    def jobs(self) -> Iterator[tuple[str, str]]:
        """Each run that was not moved aside, with Slurm's name of its job, of packed runs that of all workers."""
        names = self.job_names() if self.workers is None else [str(self.job_id)] * len(self.runs)
        yield from ((run, name) for run, name in zip(self.runs, names, strict=True) if run not in self.replaced)

    def job_names(self) -> list[str]:
        """Slurm's names of the jobs, in the order of the array's elements."""
        count = len(self.runs) if self.workers is None else self.workers
        return [str(self.job_id)] if count == 1 else [f"{self.job_id}_{index}" for index in range(count)]


@dataclass(frozen=True)
class SweepDir:
    """One sweep's folder, ``<root>/<name>``: its runs, and the files that speak of all of them."""

    path: Path

    @property
    def requests(self) -> Path:
        """``sweep.json``: every command that asked for runs of this sweep, oldest first."""
        return self.path / "sweep.json"

    @property
    def members(self) -> Path:
        """``members.jsonl``: run_id and overrides of each member, a line each."""
        return self.path / "members.jsonl"

    @property
    def submissions(self) -> Path:
        """``submissions.jsonl``: what is about to be submitted, and what became of it."""
        return self.path / "submissions.jsonl"

    @property
    def code(self) -> Path:
        """Snapshots of the code, a folder for each content."""
        return self.path / "code"

    def diff(self, diff_id: str) -> Path:
        """What was not committed when plans with this ``diff_id`` were made, as ``git diff`` tells it."""
        return self.path / "diffs" / f"{diff_id}.diff"

    @property
    def job_logs(self) -> Path:
        """What jobs printed: ``<job>_<rank>_log.out`` and ``.err``, submitit's names."""
        return self.path / "jobs"

    def plans(self, token: str) -> Path:
        """The frozen plans of a submission: line i is that of array element i. Never changed."""
        return self.path / "submissions" / f"{token}.jsonl"

    def script(self, token: str) -> Path:
        """The batch script of a submission."""
        return self.path / "submissions" / f"{token}.sh"

    def started(self, token: str) -> Path:
        """Written by the first job of a submission that starts: Slurm's id of it."""
        return self.path / "submissions" / f"{token}.started"

    def withdrawal(self, token: str) -> Path:
        """Exists where a submission was given up: should Slurm have it after all, its jobs end at once."""
        return self.path / "submissions" / f"{token}.withdrawn"

    def queue(self, token: str) -> Path:
        """Folder of the queue of a submission whose members are packed (``launcher.runtime.pack.queue``)."""
        return self.path / "queues" / token

    def refusal(self, token: str, job_id: str, restarts: str) -> Path:
        """Exists where a start of a job ended before it could train, by what its user has to mend: the exit code.

        srun ends the other ranks then, and tells their codes: that they were stopped.
        """
        return self.path / "submissions" / f"{token}.{job_id}.r{restarts}.refused"

    def was_refused(self, token: str, job_id: str) -> bool:
        """Whether any start of a job ended so."""
        return any((self.path / "submissions").glob(f"{token}.{job_id}.r*.refused"))

    @property
    def mlflow(self) -> Path:
        """Which store of MLflow records its runs, and the run there that stands for all of them."""
        return self.path / "mlflow.json"

    @property
    def mlflow_lock(self) -> Path:
        """Held by whoever makes that run."""
        return self.path / ".mlflow.lock"

    @property
    def replaced(self) -> Path:
        """Runs that were moved aside to be made anew, ``<run_id>.<n>`` each."""
        return self.path / "replaced"

    @property
    def drills(self) -> Path:
        """Short copies of its runs that were interrupted on purpose, a folder for each drill."""
        return self.path / "drills"

    def move_aside(self, runs: Iterable[str]) -> None:
        """Move each run's whole folder to ``replaced``, so that the run can begin from the start; nothing is lost.

        Written down first: of a run that was moved, the jobs so far say nothing any more. Who is cut off here does it
        again for those that were not yet moved. The caller holds the sweep's lock.

        Raises:
            UserError: a process trains one of them.
        """
        runs = list(runs)
        self.add_event("replaced", "", runs=runs)
        self.replaced.mkdir(exist_ok=True)
        taken = {path.name for path in self.replaced.iterdir()}
        for run_id in runs:
            number = next(n for n in count(1) if f"{run_id}.{n}" not in taken)
            with self.run(run_id).lock():
                self.run(run_id).path.rename(self.replaced / f"{run_id}.{number}")
        sync_folder(self.replaced)
        sync_folder(self.path)

    def run(self, run_id: str) -> RunDir:
        """One of its runs."""
        return RunDir(self.path / run_id)

    def list_runs(self) -> list[str]:
        """Ids of the runs that have a folder here, sorted."""
        return sorted(path.parent.name for path in self.path.glob("*/plan.json"))

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Be the only one who submits runs of this sweep. Gives the lock's file descriptor.

        Raises:
            UserError: somebody else is at it, or nothing can be written there.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"sweep {self.path}: another command is submitting it or runs it here; this one changed nothing"
            ) from None
        except OSError as error:
            raise UserError(f"sweep {self.path}: {error.strerror or error}; choose launch.root=…") from error
        try:
            yield lock._context.lock_file_fd or -1
        finally:
            lock.release()

    def add_request(self, **values: Any) -> None:
        """Remember a command that asked for runs."""
        asked = self.read_requests()
        write_json(self.requests, {"requests": [*asked, {"time": _now(), **values}]})

    def read_requests(self) -> list[dict[str, Any]]:
        """Every request so far."""
        known = RunDir(self.path).read(self.requests) or {}
        requests = known.get("requests")
        return [one for one in requests if isinstance(one, dict)] if isinstance(requests, list) else []

    def add_members(self, members: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Remember runs and their overrides; those that are known stay as they are."""
        known = self.read_members()
        lines = [json.dumps({"run_id": r, "overrides": o}, ensure_ascii=False) for r, o in members if r not in known]
        if lines:
            before = self.members.read_bytes() if self.members.exists() else b""
            before += b"\n" if before and not before.endswith(b"\n") else b""
            write_atomic(self.members, before + ("\n".join(lines) + "\n").encode())

    def read_members(self) -> dict[str, list[str]]:
        """Overrides of each member by run_id, in the order in which they were first asked for."""
        records = [record for record in read_json_lines(self.members) if isinstance(record.get("run_id"), str)]
        return {r["run_id"]: o if isinstance(o := r.get("overrides"), list) else [] for r in records}

    def add_event(self, event: str, token: str, **values: Any) -> None:
        """Append to ``submissions.jsonl``, durably: intent, submitted, withdrawn, cancelled or replaced."""
        append_json_line(self.submissions, {"event": event, "token": token, "time": _now(), **values})

    def read_submissions(self) -> list[Submission]:
        """All submissions, oldest first; successors stand in that which they follow."""
        found: dict[str, dict[str, Any]] = {}
        heads: dict[str, str] = {}
        for record in read_json_lines(self.submissions):
            token, event = str(record.get("token")), record.get("event")
            if event == "intent":
                found[token] = {"token": token, "runs": tuple(record["runs"]), "slurm_conf": record["slurm_conf"]}
                found[token] |= {"logs": record.get("logs"), "time": str(record.get("time"))}
                found[token] |= {"workers": record.get("workers"), "parents": record.get("parents") or {}}
                if record.get("follows") in found:
                    heads[token] = str(record["follows"])
            elif event == "submitted" and token in found:
                found[token]["job_id"] = str(record["job_id"])
            elif event == "withdrawn" and token in found:
                found[token]["withdrawn"] = True
            elif event == "replaced":
                for submission in found.values():
                    submission["replaced"] = submission.get("replaced", frozenset()) | set(record["runs"])
        built = {token: Submission(**values) for token, values in found.items()}
        for token, head in heads.items():
            built[head] = replace(built[head], successors=(*built[head].successors, built[token]))
        return [submission for token, submission in built.items() if token not in heads]

    def cut_off(self) -> list[Submission]:
        """Submissions, successors among them, of which it is not known whether they got through."""
        links = (link for head in self.read_submissions() for link in (head, *head.successors))
        return [link for link in links if link.job_id is None and not link.withdrawn]

    def job_files(self, submission: Submission, job_id: str, rank: int) -> list[Path]:
        """What a rank of a job printed and, of rank 0, Slurm's own words: errors first."""
        folder = Path(submission.logs) if submission.logs else self.job_logs
        return [folder / f"{job_id}_{rank}_log.{kind}" for kind in ("err", "out")]

    def read_cancelled(self, token: str | None = None) -> set[str]:
        """Slurm's names of the jobs that were cancelled by ``launcher cancel``; with ``token`` those of it alone."""
        events = [record for record in read_json_lines(self.submissions) if record.get("event") == "cancelled"]
        return {str(job) for record in events if token in (None, record.get("token")) for job in record["jobs"]}


def write_plans(path: Path, plans: Iterable[Mapping[str, Any]]) -> None:
    """Write frozen plans, one a line; durable before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(plan, ensure_ascii=False) + "\n" for plan in plans).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
