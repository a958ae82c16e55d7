"""The batch script of a submission: submitit renders it, from parameters that are its own or sbatch's."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.resources import Resources
from launcher.runtime.sweepdir import SweepDir
from launcher.snapshot import Snapshot

WORKER = "launcher.runtime.worker"
_SUBMITITS_NAMES = {
    "name": "job_name", "timeout_min": "time", "mem_gb": "mem", "tasks_per_node": "ntasks_per_node",
}  # fmt: skip
"""What submitit calls parameters inside, where that differs from the keys of hydra-submitit-launcher."""


@dataclass(frozen=True)
class Batch:
    """What one call of sbatch is about."""

    name: str
    """The job's, where the user gave none."""
    token: str
    plans: Path
    count: int
    """Elements of its array; 1: a plain job."""
    resources: Resources
    logs: Path
    """Folder of what the job prints."""

    @staticmethod
    def of(sweep: SweepDir, token: str, resources: Resources, count: int, logs: Path) -> Batch:
        """A submission of ``sweep``."""
        return Batch(sweep.path.name, token, sweep.plans(token), count, resources, logs)


def script_text(batch: Batch, snapshot: Snapshot) -> str:
    """The whole script. Its last command is srun: a rank that fails makes the job FAILED."""
    from submitit.slurm.slurm import _make_sbatch_string  # a quarter of a second, and only here

    queue = {"name": batch.name} | batch.resources.queue
    setup = [*batch.resources.site.setup, *(queue.pop("setup", None) or []), _python_path(snapshot)]
    # With underscores, as submitit has them: an option that is given twice is then written once.
    other = {str(k).replace("-", "_"): v for k, v in (queue.pop("additional_parameters", None) or {}).items()}
    parameters = {_SUBMITITS_NAMES.get(key, key): value for key, value in queue.items()}
    if "mem" in parameters:
        parameters["mem"] = f"{parameters['mem']}GB"
    text: str = _make_sbatch_string(
        command=_command(batch),
        folder=str(batch.logs).replace("%", "%%"),
        setup=setup,
        additional_parameters={"requeue": True, "chdir": str(snapshot.cwd)} | other,
        srun_args=_srun_arguments(batch.resources),
        map_count=batch.count if batch.count > 1 else None,
        wckey=None,  # type: ignore[arg-type]
        **parameters,
    )
    return text


def _command(batch: Batch) -> str:
    # -P: the folder that a job starts in is no place to import from (Python 3.11, "-P").
    python = batch.resources.site.python or shlex.quote(sys.executable)
    words = ["-uP", "-m", WORKER, str(batch.plans), "--submission", batch.token]
    return f"{python} {shlex.join(words)}"


def _srun_arguments(resources: Resources) -> list[str]:
    # One rank that fails ends the others, which would wait for it; a requeued job appends to what it printed before;
    # since Slurm 22.05 srun no longer takes -c from sbatch (srun(1)).
    words = ["--kill-on-bad-exit=1", "--open-mode=append"]
    cpus = resources.hardware.cpus_per_task
    return [*words, f"--cpus-per-task={cpus}"] if cpus else words


def _python_path(snapshot: Snapshot) -> str:
    paths = ":".join(shlex.quote(str(path)) for path in snapshot.import_paths)
    return f'export PYTHONPATH={paths}"${{PYTHONPATH:+:$PYTHONPATH}}"'
