"""What Slurm's commands print, read: pure functions of text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

_ARRAY = re.compile(r"(?P<array>\d+)_\[(?P<ranges>\d+(?:-\d+(?::\d+)?)?(?:,\d+(?:-\d+(?::\d+)?)?)*)(?:%\d+)?\]")
_TO_START = re.compile(r"Job \d+ to start at (\S+) using \d+ processors")


@dataclass(frozen=True)
class QueuedJob:
    """One line of squeue: a job, or an element of an array."""

    job_id: str
    """``12`` or ``12_3``."""
    state: str
    """PENDING, RUNNING, COMPLETED, … (squeue(1), JOB STATE CODES)."""
    reason: str
    start: str
    """When it started or is expected to; ``N/A`` where Slurm does not know."""
    elapsed: str
    nodes: str
    command: str
    """The batch script."""


@dataclass(frozen=True)
class Forecast:
    """What ``sbatch --test-only`` foretells of a job: an estimate, by the jobs that run and stand in line."""

    start: datetime
    """Local time."""
    preempts: bool
    """Whether other jobs would be ended for it."""


def elements(job_id: str) -> list[str]:
    """The jobs that one name of sacct stands for: ``12_[0-1,7%4]`` are 12_0, 12_1 and 12_7; others only themselves.

    Elements of an array that were never started share one record.
    """
    found = _ARRAY.fullmatch(job_id)
    if found is None:
        return [job_id]
    names = []
    for part in found["ranges"].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        indexes = range(int(first), int(last or first) + 1, int(step or 1))
        names += [f"{found['array']}_{index}" for index in indexes]
    return names


def settings(line: str) -> dict[str, str]:
    """``A=1 B=2`` as a mapping."""
    return {name: value for name, sign, value in (word.partition("=") for word in line.split()) if sign}


def forecast_in(said: str) -> Forecast | None:
    """What ``sbatch --test-only`` foretells; None: it does not say."""
    found = _TO_START.search(said)
    try:
        return Forecast(datetime.fromisoformat(found[1]), "Preempts:" in said) if found else None
    except ValueError:
        return None
