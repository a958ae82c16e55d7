"""Runs that are to be submitted, and what became of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.runtime.plan import Plan
from launcher.submission.resources import Resources

_LAUNCHING = ("launch.", "hydra.", "hydra/", "+hydra.", "checkpoint.at_end=")


@dataclass(frozen=True)
class Job:
    """A run that is to be submitted."""

    plan: Plan
    resources: Resources
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Receipt:
    """What became of the request for one run."""

    run_id: str
    state: str
    """SUBMITTED; PLANNED where Slurm took no more; or what the run was already."""
    job_id: str | None
    new: bool
    """Whether this command submitted it."""
    reason: str = ""
    """Slurm's words, where it took no more."""


def told_apart(jobs: Sequence[Job]) -> dict[str, str]:
    """For each run the overrides that not all of ``jobs`` have; those about launching are left out."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {
        job.plan.run_id: " ".join(o for o in job.overrides if o not in shared and not o.startswith(_LAUNCHING))
        for job in jobs
    }


def by_shape(jobs: Sequence[Job]) -> list[list[Job]]:
    """``jobs`` in groups that can share an array."""
    shapes: dict[str, list[Job]] = {}
    for job in jobs:
        shapes.setdefault(job.resources.key, []).append(job)
    return list(shapes.values())
