"""What a run left behind that tells how it ended: which rank failed first, where its log is, and why it did."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.manage.causes import Cause, FirstTask, cause_of, first_task
from launcher.manage.states import RunState
from launcher.manage.terminal import lines_of
from launcher.runtime.errors import ExitCode
from launcher.runtime.failures import first_of
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import Submission, SweepDir

_TAIL = 32_768
"""Bytes of the end of a file in which a cause is looked for; earlier attempts wrote into the same file."""

_STOPPED = tuple(f"exit code {code}" for code in (ExitCode.STOPPED_SAVED.value, ExitCode.STOPPED_NOT_SAVED.value))
"""How srun words the end of a rank that was asked to stop."""


@dataclass(frozen=True)
class Evidence:
    """A run's files that matter, and what they say."""

    rank: int
    host: str
    failed: bool
    """Whether that rank is known to have failed."""
    files: tuple[Path, ...]
    """Where that rank wrote, the most telling first; not all need exist."""
    cause: Cause | None

    @property
    def file(self) -> Path | None:
        """The first of ``files`` that holds anything."""
        return next((file for file in self.files if _size(file)), None)


def gather(sweep: SweepDir, state: RunState, rank: int | None = None) -> Evidence:
    """The evidence of a run, of ``rank`` or of the rank that failed first (rank 0 where none did)."""
    rundir = sweep.run(state.run_id)
    record = _failure_of(rundir, state.state)
    task = _first_task(sweep, state) if record is None or record.get("after_another") else None
    if task is not None:
        record = None
    first = task.rank if task else _rank_of(record)
    chosen = first if rank is None else rank
    if chosen != first:
        task, record = None, next((r for r in _latest(rundir) if r.get("rank") == rank), None)
    files = [rundir.log(chosen), *job_files(sweep, state, chosen)]
    if rank is None and chosen:  # a rank that was killed before it said anything: then what rank 0 saw
        files += [rundir.log(0), *job_files(sweep, state, 0)]
    host = task.host if task else str((record or {}).get("host") or state.node)
    broke = record is not None and not record.get("after_another")
    ended = state.state in ("FAILED", "STALLED", "PREEMPTED", "CANCELLED") or (state.state == "REQUEUED" and broke)
    cause = _cause(state, record, task, [*files, *job_files(sweep, state, 0)]) if ended else None
    return Evidence(chosen, host, record is not None or task is not None, tuple(files), cause)


def _first_task(sweep: SweepDir, state: RunState) -> FirstTask | None:
    """What srun says of a run that failed; it prints where rank 0 does."""
    # A rank that was killed makes srun stop the others, and these may save and call it a stop on request.
    if state.state != "FAILED" and (state.state, state.slurm) != ("PREEMPTED", "FAILED"):
        return None
    errors = (tail_of(file) for file in job_files(sweep, state, 0) if file.suffix == ".err")
    found = next((task for text in errors if (task := first_task(text))), None)
    return None if found and found.how.endswith(_STOPPED) else found


def _cause(
    state: RunState, record: Mapping[str, Any] | None, task: FirstTask | None, files: Sequence[Path]
) -> Cause | None:
    if state.state == "CANCELLED":
        return Cause("cancelled", "the same command goes on")
    if state.state == "PREEMPTED" and record is None and task is None:
        return cause_of([], None, state.slurm) or Cause("stopped on request", "the same command goes on")
    # What was printed before what was logged: srun and our own one line for an error are there.
    printed = [tail_of(file) for file in sorted(dict.fromkeys(files), key=lambda file: file.suffix != ".err")]
    return cause_of([state.reason, *printed], record, state.slurm, task.how if task else "")


def _failure_of(rundir: RunDir, state: str) -> Mapping[str, Any] | None:
    """The record of the rank that failed first in the newest start; those that only lost a peer come last.

    None where a newer start has not failed.
    """
    records = _latest(rundir)
    starts = [event for event in rundir.attempt_events() if event.get("event") == "start"]
    if records and starts and state != "FAILED":
        newest = starts[-1]
        same = newest.get("incarnation") == records[0].get("incarnation")
        if not same and str(newest.get("time")) > max(str(record.get("time")) for record in records):
            return None
    return first_of(records)


def _latest(rundir: RunDir) -> list[dict[str, Any]]:
    """Failures of the start whose failures are the newest."""
    records = rundir.failure_records()
    return [record for record in records if record["incarnation"] == records[-1]["incarnation"]]


def job_files(sweep: SweepDir, state: RunState, rank: int) -> list[Path]:
    """What a rank's job printed, as submitit names it; of a local queue's run too."""
    rundir = sweep.run(state.run_id)
    starts = [event for event in rundir.attempt_events() if event.get("event") == "start"]
    job_id = state.job_id or (str(starts[-1].get("job_id") or "") if starts else "")
    if not job_id:
        return []
    of_run = [s for s in sweep.read_submissions() if state.run_id in s.runs and s.job_id and not s.withdrawn]
    submission = of_run[-1] if of_run and state.job_id else Submission("", (), None)
    return sweep.job_files(submission, job_id, rank)


def tail_of(file: Path, size: int = _TAIL) -> str:
    """The end of a text file, printable; empty where there is none."""
    try:
        with file.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - size))
            return "\n".join(lines_of(stream.read(size).decode(errors="replace")))
    except OSError:
        return ""


def _rank_of(record: Mapping[str, Any] | None) -> int:
    rank = (record or {}).get("rank")
    return rank if isinstance(rank, int) and rank >= 0 else 0


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
