"""``launch.dry_run=true``: what would be submitted, and what Slurm says to it; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError, SubmitLimit
from launcher.submission.batch import Batch, script_text
from launcher.submission.disk import show_disk
from launcher.submission.jobs import Job, by_shape, told_apart
from launcher.submission.keep_off import keep_off
from launcher.submission.local_queue import default_parallel
from launcher.submission.packing import Packing
from launcher.submission.reconcile import Rule, decisions, tell
from launcher.submission.snapshot import Snapshot
from launcher.submission.submit import largest_array, test_script
from launcher.submission.successors import REQUEUE, Continuation, hint


def show(
    sweep: SweepDir,
    jobs: Sequence[Job],
    snapshot: Snapshot,
    slurm: Slurm | None,
    logs: Path,
    rule: Rule,
    packing: Packing | None = None,
    continuation: Continuation = REQUEUE,
    parallel: int | None = None,
) -> None:
    """Print the plan, what it takes on disk, each shape's batch script and Slurm's answer to ``sbatch --test-only``.

    Args:
        slurm: None: the runs are processes on this machine.
        logs: folder of what jobs print.
        rule: which runs that have ended would be run again.
        packing: have runs of one rank share jobs.
        continuation: how runs go on whose jobs are ended.
        parallel: most runs at a time on this machine.

    Raises:
        UserError: Slurm would not take one of the shapes, or does not answer.
    """
    found = decisions(sweep, [job.plan for job in jobs], rule, snapshot.id, slurm)
    todo = [job for job, decision in zip(jobs, found, strict=True) if decision.begins]
    print(f"# {len(jobs)} runs in {sweep.path}, code {snapshot.id} ({len(snapshot.copies)} files)")
    for decision, differs in zip(found, told_apart(jobs).values(), strict=True):
        print(f"{decision.run_id}  {decision.state:<10} {decision.action:<7} {differs}".rstrip())
    tell(sweep, found)
    if slurm is None:
        at_once = (parallel or default_parallel(todo)) * (packing.beside if packing else 1) if todo else None
        show_disk(sweep.path.parent, [job.plan for job in todo], snapshot, at_once)
        return
    todo = keep_off(sweep, todo, found, slurm, snapshot, logs, packing)
    minutes = sum(job.resources.gpus * job.resources.minutes for job in todo)
    print(f"# {len(todo)} would be submitted; at most {minutes / 60:.1f} GPU-hours by their time limits")
    limit = largest_array(slurm) if todo else 1
    at_once = _at_once(todo, packing, limit)
    show_disk(sweep.path.parent, [job.plan for job in todo], snapshot, at_once)
    refused = []
    shapes = by_shape(todo)
    counts = continuation.successors([shape[0].resources for shape in shapes], slurm)
    for shape, successors in zip(shapes, counts, strict=True):
        shared = packing if packing and packing.takes(shape[0].resources.hardware) else None
        jobs_of = shared.jobs(len(shape), limit) if shared else min(len(shape), limit)
        batch = Batch.of(sweep, "TOKEN", shape[0].resources, jobs_of, logs)
        arrays = -(-len(shape) // batch.count)
        how = f", in {arrays} arrays" if arrays > 1 else ""
        if shared:
            batch, how = batch.packed(shared.beside), f", shared by {batch.count} jobs"
        if successors:
            batch = replace(batch, chained=True)
            how += f", each job followed by {successors} successors (--dependency=afterany:JOB, one after the other)"
        refused += _show_shape(f"{len(shape)} runs like this{how}", batch, snapshot, slurm)
    if refused:
        raise UserError("; ".join(refused))


def _at_once(jobs: Sequence[Job], packing: Packing | None, limit: int) -> int | None:
    """Most of ``jobs`` that run at a time where all of them share workers; None: as many as Slurm starts."""
    if packing is None or not all(packing.takes(job.resources.hardware) for job in jobs):
        return None
    return sum(packing.jobs(len(shape), limit) * packing.beside for shape in by_shape(jobs))


def _show_shape(title: str, batch: Batch, snapshot: Snapshot, slurm: Slurm) -> list[str]:
    """Print the (first) array of one shape; returns why Slurm would not take it, if so."""
    text = script_text(batch, snapshot)
    print(f"\n# {title}:\n{text.rstrip()}")
    try:
        print(f"# sbatch --test-only: {test_script(slurm, text)}")
    except SubmitLimit as error:
        print(
            f"# sbatch --test-only: {error}; as many as Slurm takes would be submitted, the same command adds the rest"
        )
    except SlurmAway:
        raise
    except SlurmError as error:
        print(f"# refused: {error}{hint(error)}")
        return [f"{error}{hint(error)}"]
    return []
