"""The batch script of a submission: submitit renders it, from parameters that are its own or sbatch's."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.resources import Resources
from launcher.submission.snapshot import Snapshot

WORKER = "launcher.runtime.worker"
_SUBMITITS_NAMES = {
    "name": "job_name", "timeout_min": "time", "mem_gb": "mem", "tasks_per_node": "ntasks_per_node",
}  # fmt: skip
"""What submitit calls parameters inside, where that differs from the keys of hydra-submitit-launcher."""
_PERCENT = "\ue000"
"""Stands for a ``%`` of a folder while submitit renders: it would take ``%j`` for the job's number, in ``%%j`` too."""


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
    started: Path
    """Where its first lines write its number."""

    @staticmethod
    def of(sweep: SweepDir, token: str, resources: Resources, count: int, logs: Path) -> Batch:
        """A submission of ``sweep``."""
        return Batch(sweep.path.name, token, sweep.plans(token), count, resources, logs, sweep.started(token))


def script_text(batch: Batch, snapshot: Snapshot) -> str:
    """The whole script. Its last command is srun: a rank that fails makes the job FAILED.

    Raises:
        UserError: a folder has a name that a script cannot hold.
    """
    from submitit.slurm.slurm import _make_sbatch_string  # a quarter of a second, and only here

    _require_plain(batch, snapshot)
    queue = {"name": batch.name} | batch.resources.queue
    setup = [*batch.resources.site.setup, *(queue.pop("setup", None) or []), _mark(batch), _python_path(snapshot)]
    # With underscores, as submitit has them: an option that is given twice is then written once.
    said = (queue.pop("additional_parameters", None) or {}).items()
    other = {str(key).replace("-", "_"): value for key, value in said if value is not None and value is not False}
    ours = {"chdir": str(snapshot.cwd)} | ({} if other.get("no_requeue") else {"requeue": True})
    parameters = {_SUBMITITS_NAMES.get(key, key): value for key, value in queue.items()}
    if "mem" in parameters:
        parameters["mem"] = f"{parameters['mem']}GB"
    text: str = _make_sbatch_string(
        command=_command(batch),
        folder=str(batch.logs).replace("%", _PERCENT),
        setup=setup,
        additional_parameters=ours | other,
        srun_args=_srun_arguments(batch.resources),
        map_count=batch.count if batch.count > 1 else None,
        wckey=None,  # type: ignore[arg-type]
        **parameters,
    )
    return "\n".join(map(_for_sbatch, text.replace(_PERCENT, "%%").split("\n")))


def _for_sbatch(line: str) -> str:
    """sbatch reads quotes as a shell does, but a backslash between them escapes (22.05): ``'a\\'`` would not end."""
    return line.replace("\\", "\\\\") if line.startswith("#SBATCH ") else line


def _require_plain(batch: Batch, snapshot: Snapshot) -> None:
    """See that no folder's name can end its line in the script, or its place in a list of folders."""
    for path in (batch.logs, batch.plans, snapshot.cwd, *snapshot.import_paths, sys.executable):
        if not str(path).isprintable():
            raise UserError(f"{str(path)!r}: holds characters that no batch script can hold; choose another folder")
    if "\\" in str(batch.logs):  # switches Slurm's own %j off (sbatch(1), FILENAME PATTERN)
        raise UserError(f"{batch.logs}: Slurm writes into no folder with '\\' in its name; choose launch.root=…")
    for path in snapshot.import_paths:
        if ":" in str(path):
            raise UserError(f"{path}: Python imports from no folder with ':' in its name; choose launch.root=…")


def _command(batch: Batch) -> str:
    # -P: the folder that a job starts in is no place to import from (Python 3.11, "-P").
    python = batch.resources.site.python or shlex.quote(sys.executable)
    words = ["-uP", "-m", WORKER, str(batch.plans), "--submission", batch.token]
    return f"{python} {shlex.join(words)}"


def _mark(batch: Batch) -> str:
    """Leaves the job's number beside its plans: a command cut off before Slurm's answer is cleared up by it."""
    return f'echo "${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}" > {shlex.quote(str(batch.started))} || true'


def _srun_arguments(resources: Resources) -> list[str]:
    # One rank that fails ends the others, which would wait for it; a requeued job appends to what it printed before;
    # since Slurm 22.05 srun no longer takes -c from sbatch (srun(1)).
    words = ["--kill-on-bad-exit=1", "--open-mode=append"]
    cpus = resources.hardware.cpus_per_task
    return [*words, f"--cpus-per-task={cpus}"] if cpus else words


def _python_path(snapshot: Snapshot) -> str:
    paths = ":".join(shlex.quote(str(path)) for path in snapshot.import_paths)
    return f'export PYTHONPATH={paths}"${{PYTHONPATH:+:$PYTHONPATH}}"'
