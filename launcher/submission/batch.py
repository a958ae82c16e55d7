"""The batch script of a submission: submitit renders it, from parameters that are its own or sbatch's."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.chain import NOT_NEEDED
from launcher.requeue import BY_THE_SHELL
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.world import STREAMING
from launcher.submission.container import PYTHON, PYXIS, exec_words, image_of, mounts_of, shell_text, srun_words
from launcher.submission.resources import Resources
from launcher.submission.snapshot import Snapshot
from launcher.submission.variables import export_lines, scratch_lines

WORKER = "launcher.runtime.worker"
PACK_WORKER = "launcher.runtime.pack.worker"
_TUNABLES = f'export GLIBC_TUNABLES={STREAMING}"${{GLIBC_TUNABLES:+:$GLIBC_TUNABLES}}"'
REQUEUE = "launcher.requeue"
SUCCESSOR = "launcher.successor"
_SUBMITITS_NAMES = {
    "name": "job_name", "timeout_min": "time", "mem_gb": "mem", "tasks_per_node": "ntasks_per_node",
}  # fmt: skip
"""What submitit calls parameters inside, where that differs from the keys of hydra-submitit-launcher."""
_SIGNAL_DELAY_S = 90
"""Submitit's default of ``signal_delay_s``: how long before the time limit Slurm warns."""
_BEFORE_SRUN = """\
set +eu  # whatever a line of setup has said: the lines after srun are run
ended=
trap 'ended=1' TERM  # Slurm itself ends the job. bash acts on it when srun is over; srun does not inherit it.
"""
_AFTER_SRUN = """\
code=$?
# Where Slurm itself has ended the job its word stands. Warnings go to ranks alone: they have saved and are gone, and
# the job goes back into the queue, as it does when a rank was killed or broke down (launcher/requeue.py decides).
if {asks}[ -z "$ended" ]; then
    {door}
    said=$?
    job="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}"
    job="${{job:-$SLURM_JOB_ID}}"
    for pause in 5 15 60 180 600 0; do  # {by_the_shell}: no scontrol where Python runs
        if [ "$said" -ne {by_the_shell} ] || [ -n "$ended" ]; then break; fi
        case "$(scontrol show job --oneliner "$job")" in
            *" JobState=RUNNING "*" Restarts=${{SLURM_RESTART_COUNT:-0}} "*)
                if scontrol requeue "$job"; then said=0; break; fi ;;
            *" JobState="*) break ;;  # it is being cancelled, was requeued, or even runs anew: a requeue would harm it
        esac
        sleep "$pause"
    done
    if [ "$said" -eq {failed} ]; then code={failed}; fi  # it has used up its attempts
    if [ "$said" -eq 0 ] && [ -z "$ended" ]; then  # Slurm is about to end the job: requeued, or cancelled
        sleep 60 &  # an exit code now would be taken for its end
        wait $!
    fi
fi
{at_its_end}exit "$code"
"""
_ENDED = """\
if [ -n "$ended" ]; then  # who goes on need not wait for the whole array
    {door}
fi
"""
_IS_NEEDED = """\
{successor}
said=$?
if [ "$said" -eq {not_needed} ]; then exit 0; fi  # nothing is left to do
if [ "$said" -ne 0 ]; then exit "$said"; fi
"""
_DOOR_OF_CONTAINER = """\
if {host} -Pc 'import launcher.requeue' 2>/dev/null; then  # out here Slurm can be asked
        {here}
    else
        {there}
    fi"""
_ONE_TASK = "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 "
_HAND_ON = "export SLURM_EXPORT_ENV=ALL  # srun would obey what sbatch was told of --export (sbatch(1))"
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
    worker: tuple[str, ...] = (WORKER,)
    """The module that each rank runs, and its options."""
    parents: tuple[Path, ...] = ()
    """Run directories from whose states its runs begin."""
    door: tuple[str, ...] = ()
    """Options of the door that is called when srun has ended."""
    chained: bool = False
    """Whether other jobs go on where its own end."""
    follows: bool = False
    """Whether its jobs are such: each finds out first whether it is needed."""

    @staticmethod
    def of(sweep: SweepDir, token: str, resources: Resources, count: int, logs: Path) -> Batch:
        """A submission of ``sweep``."""
        return Batch(sweep.path.name, token, sweep.plans(token), count, resources, logs, sweep.started(token))

    def packed(self, beside: int) -> Batch:
        """The same with jobs that share all plans, each at ``beside`` of them at a time."""
        cpus = self.resources.hardware.cpus_per_task
        options = ("--beside", str(beside), *(("--cpus", str(cpus)) if cpus else ()))
        return replace(self, worker=(PACK_WORKER, *options), door=("--packed",))


def script_text(batch: Batch, snapshot: Snapshot) -> str:
    """The whole script. It ends with srun's exit code: a rank that fails makes the job FAILED, or has it requeued.

    Raises:
        UserError: a folder has a name that a script cannot hold.
    """
    from submitit.slurm.slurm import _make_sbatch_string  # a quarter of a second, and only here

    _require_plain(batch, snapshot)
    queue = {"name": batch.name} | batch.resources.queue
    site = batch.resources.site
    setup = [
        *export_lines(site),
        *site.setup,
        *(queue.pop("setup", None) or []),
        _mark(batch),
        _python_path(snapshot),
        _TUNABLES,
        _HAND_ON,
        *scratch_lines(site),
    ]
    setup += _BEFORE_SRUN.splitlines()
    if batch.follows:
        ask = _door(batch, snapshot, (SUCCESSOR, *batch.door))
        setup += _IS_NEEDED.format(successor=ask, not_needed=NOT_NEEDED).splitlines()
    # With underscores, as submitit has them: an option that is given twice is then written once.
    said = (queue.pop("additional_parameters", None) or {}).items()
    other = {str(key).replace("-", "_"): value for key, value in said if value is not None and value is not False}
    ours = {"chdir": str(snapshot.cwd)} | ({} if other.get("no_requeue") else {"requeue": True})
    parameters = {_SUBMITITS_NAMES.get(key, key): value for key, value in queue.items()}
    if "mem" in parameters:
        parameters["mem"] = f"{parameters['mem']}GB"
    text: str = _make_sbatch_string(
        command=_rank(batch, snapshot),
        folder=str(batch.logs).replace("%", _PERCENT),
        setup=setup,
        additional_parameters=ours | other,
        srun_args=_srun_arguments(batch.resources),
        map_count=batch.count if batch.count > 1 else None,
        wckey=None,  # type: ignore[arg-type]
        **parameters,
    )
    text = "\n".join(map(_for_sbatch, text.replace(_PERCENT, "%%").split("\n")))
    return text.rstrip("\n") + "\n" + _after_srun(batch, snapshot)


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


def _rank(batch: Batch, snapshot: Snapshot) -> str:
    """What srun is to start on each rank; options of its own come first."""
    site = batch.resources.site
    if site.container.image is None:
        return _python(batch, site.python or shlex.quote(sys.executable), *batch.worker)
    return f"{_inside(batch, snapshot)} {_python(batch, site.python or PYTHON, *batch.worker)}"


def _inside(batch: Batch, snapshot: Snapshot) -> str:
    """What stands before a command so that it runs in the site's container; for pyxis, options of srun."""
    site, cwd = batch.resources.site, snapshot.cwd
    root = batch.plans.parent.parent.parent
    image = image_of(site.container, Path.cwd())
    mounts = mounts_of(site, [root, *batch.parents, snapshot.path, cwd, *filter(None, [snapshot.worktree])])
    if site.container.runtime == PYXIS:
        return shell_text(srun_words(site, image, mounts, cwd))
    return shell_text(exec_words(site.container, image, mounts, cwd, batch.resources.asks_for_gpus))


def _after_srun(batch: Batch, snapshot: Snapshot) -> str:
    warned = str(batch.resources.queue.get("signal_delay_s", _SIGNAL_DELAY_S))
    chained = ("--chained",) if batch.chained else ()
    words = (REQUEUE, "--warned", warned, *batch.door, *chained)
    ended = _ENDED.format(door=_door(batch, snapshot, words, ' --code "$code" --ended'))
    return _AFTER_SRUN.format(
        door=_door(batch, snapshot, words, ' --code "$code"'),
        by_the_shell=BY_THE_SHELL,
        failed=int(ExitCode.TRAINING_FAILED),
        asks="" if chained else '[ "$code" -ne 0 ] && ',  # where all went well, too: nobody needs to go on
        at_its_end=ended if chained and batch.count > 1 else "",
    )


def _door(batch: Batch, snapshot: Snapshot, words: Sequence[str], said: str = "") -> str:
    """What the batch shell calls to run a module of ours; ``said``: what it is told, in words of the shell."""
    site, host = batch.resources.site, shlex.quote(sys.executable)
    if site.container.image is None:
        return _python(batch, site.python or host, *words) + said
    step = _ONE_TASK if site.container.runtime == PYXIS else ""
    there = f"{step}{_inside(batch, snapshot)} {_python(batch, site.python or PYTHON, *words)}"
    return _DOOR_OF_CONTAINER.format(host=host, here=_python(batch, host, *words) + said, there=there + said)


def _python(batch: Batch, python: str, module: str, *options: str) -> str:
    # -P: the folder that a job starts in is no place to import from (Python 3.11, "-P").
    words = ["-uP", "-m", module, str(batch.plans), "--submission", batch.token, *options]
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
