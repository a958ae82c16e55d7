"""A study's workers as an array of Slurm jobs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.manage.survey import open_workers
from launcher.runtime.errors import ExitCode, RunsNotDone, UserError
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway, require_slurm
from launcher.submission.submit import OwnWorkers, require_accepted, submit_workers
from sweeps.study.show import dashboard

if TYPE_CHECKING:
    from sweeps.study.command import Prepared

_POLL_S = (1.0, 2.0, 3.0, 5.0, 10.0)


def on_slurm(study: Prepared, env: Mapping[str, str], cwd: Path, create: Callable[[], None]) -> int:
    """Submit as many workers as are missing; say what became of it, or wait where ``launch.wait`` says so.

    Args:
        create: makes the study's folder, or goes on with the one that is there.

    Raises:
        UserError: Slurm takes none, or the folder holds another study.
    """
    require_slurm(env)
    assert study.snapshot is not None
    folder, sweep, beside = study.folder, study.folder.sweep, study.launch.beside
    slurm = Slurm(study.snapshot.without_live_code(env), _slurm_conf(study, cwd))
    require_accepted(sweep, [study.job], slurm, study.snapshot, study.logs)
    with sweep.locked() as lock:
        create()
        live = _living(sweep, env)
        missing = study.workers - len(live)
        if missing > 0:
            cpus = study.job.resources.hardware.cpus_per_task
            options = ("--beside", str(beside), *(("--cpus", str(cpus)) if cpus else ()))
            own = OwnWorkers(("sweeps.study.worker", *options), study.freeze)
            sent = submit_workers(sweep, study.job, own, missing, slurm, study.snapshot, lock, study.logs)
            print(f"SUBMITTED  {sent.job_id}  {sent.workers} workers")
        if live:
            print(f"{len(live)} workers are queued or run already: {' '.join(sorted(live)[:5])}")
    print(f"follow it:  python -m sweeps study {shlex.join(sys.argv[2:])} --show", file=sys.stderr)
    print(f"            python -m launcher status {shlex.quote(str(folder.path))}", file=sys.stderr)
    print(f"            {dashboard(folder, study.definition)}", file=sys.stderr)
    if not study.launch.wait:
        return ExitCode.DONE
    _wait(sweep, env)
    from sweeps.study.command import say_result

    return say_result(folder, ExitCode.DONE)


def _wait(sweep: SweepDir, env: Mapping[str, str]) -> None:
    """Until no worker is left."""
    stop, looks = StopFlag(), 0
    stop.install()
    while True:
        try:
            if not _living(sweep, env):
                return
        except SlurmAway as error:  # a restart of slurmctld ends no job
            print(f"{error}; still waiting", file=sys.stderr)
        pause = _POLL_S[min(looks, len(_POLL_S) - 1)]
        looks += 1
        if stop.wait(pause):
            raise RunsNotDone("no longer waiting; the workers go on", ExitCode.STOPPED_SAVED)


def _living(sweep: SweepDir, env: Mapping[str, str]) -> list[str]:
    """Names of this study's workers that Slurm has."""
    return [name for _, names in open_workers(sweep, env) for name in names]


def _slurm_conf(study: Prepared, cwd: Path) -> str | None:
    said = study.job.resources.site.slurm_conf
    if said is None:
        return None
    path = cwd / Path(said).expanduser()
    if not path.exists():
        raise UserError(f"site.slurm_conf={said}: there is no such file; is the cluster up? (python -m slurm up)")
    return str(path)
