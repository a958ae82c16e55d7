"""``launch.dry_run=true``: what would be submitted, and what Slurm says to it; nothing is changed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher.batch import Batch, script_text
from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmError
from launcher.snapshot import Snapshot
from launcher.submit import Job, by_shape


def show(sweep: SweepDir, jobs: Sequence[Job], snapshot: Snapshot, slurm: Slurm | None) -> None:
    """Print the plan, each shape's batch script and Slurm's answer to ``sbatch --test-only``.

    Args:
        slurm: None: the runs are processes on this machine.

    Raises:
        UserError: Slurm would not take one of the shapes.
    """
    print(f"# {len(jobs)} runs in {sweep.path}, code {snapshot.id} ({len(snapshot.copies)} files)")
    for job in jobs:
        print(f"{job.plan.run_id}  {job.plan.rundir.state() or 'PLANNED':<10} {' '.join(job.overrides)}".rstrip())
    shapes = by_shape(jobs)
    if slurm:
        minutes = sum(job.resources.gpus * job.resources.minutes for job in jobs)
        print(f"# at most {minutes / 60:.1f} GPU-hours by their time limits")
    refused = []
    for shape in shapes if slurm else []:
        assert slurm is not None
        text = script_text(Batch.of(sweep, "TOKEN", shape[0].resources, len(shape), sweep.job_logs), snapshot)
        print(f"\n# {len(shape)} runs like this:\n{text.rstrip()}")
        try:
            print(f"# sbatch --test-only: {_test(slurm, text)}")
        except SlurmError as error:
            print(f"# refused: {error}")
            refused.append(str(error))
    if refused:
        raise UserError("; ".join(refused))


def _test(slurm: Slurm, text: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as script:
        script.write(text)
        script.flush()
        return slurm.test(Path(script.name))
