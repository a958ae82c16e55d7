"""Runs that are submitted again, kept off the nodes on which they broke down (``launcher.runtime.bad_nodes``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.runtime.policy import limits_of
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError
from launcher.submission.jobs import Job
from launcher.submission.packing import Packing
from launcher.submission.reconcile import Decision
from launcher.submission.snapshot import Snapshot
from launcher.submission.submit import require_accepted


def keep_off(
    sweep: SweepDir,
    jobs: Sequence[Job],
    found: Sequence[Decision],
    slurm: Slurm,
    snapshot: Snapshot,
    logs: Path,
    packing: Packing | None,
) -> list[Job]:
    """``jobs``, each off the nodes that its run avoids, where Slurm has others; which is said on stderr.

    What is made anew has no past, and packed runs, which share their jobs, avoid no node.

    Raises:
        SlurmAway: slurmctld does not answer.
    """
    avoids = {decision.run_id: decision.avoids for decision in found if decision.avoids and decision.action != "anew"}
    kept = []
    for job in jobs:
        nodes = avoids.get(job.plan.run_id, ())
        nodes = nodes[: limits_of(job.plan).max_excluded] if nodes else ()  # of a thousand runs few plans are read
        if not nodes or (packing and packing.takes(job.resources.hardware)):
            kept.append(job)
            continue
        other, run = replace(job, resources=job.resources.without_nodes(nodes)), f"run {job.plan.rundir.path}:"
        try:
            require_accepted(sweep, [other], slurm, snapshot, logs)
            print(f"{run} avoids {','.join(nodes)}, where it broke down before", file=sys.stderr)
            kept.append(other)
        except SlurmAway:
            raise
        except SlurmError as error:
            print(f"{run} does not avoid {','.join(nodes)}: {error}", file=sys.stderr)
            kept.append(job)
    return kept
