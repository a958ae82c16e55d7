"""``launcher sync``: give MLflow what is missing there of runs, and say how what W&B wrote offline is sent.

All of it comes from the run directory: numbers from ``metrics.csv``, parameters from the plan, files, and pictures
where TensorBoard keeps them. What stands there already is left alone: it may be called at any time, again and again.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.manage.targets import merged, named
from launcher.runtime.errors import ExitCode, UserError, say_error
from launcher.runtime.plan import Plan
from launcher.runtime.redaction import redacted
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import About
from launcher.runtime.tracking_uri import absolute_uri, check_uri
from launcher.tracking import require_installed

_ALIVE_S = 600.0
"""A run that gave a sign of life since records for itself."""


def sync(words: Sequence[str], cwd: Path, *, uri: str | None = None, send: bool = False) -> int:
    """Record what is missing of the runs that ``words`` stand for; a line for each run that has a tracker.

    Args:
        uri: an MLflow store for all of them, whatever they were planned with.
        send: run ``wandb sync``; else it is only said.

    Returns:
        The exit code: DONE, or USER_ERROR where something of a run could not be recorded.

    Raises:
        UserError: a word stands for no run, or ``uri`` for no store.
    """
    try:
        check_uri(uri)
    except ValueError as error:
        raise UserError(f"--{error}".replace("_", "-", 1)) from None
    uri = absolute_uri(uri, lambda file: str(cwd / file))
    code = ExitCode.DONE
    tracked = 0
    for target in merged(target for word in words for target in named(word, cwd)):
        for rundir in map(target.sweep.run, target.run_ids):
            try:
                tracked += _sync(rundir, uri, send)
            except UserError as error:
                say_error(error)
                code, tracked = ExitCode.USER_ERROR, tracked + 1
    if not tracked:
        print("none of these runs has MLflow or W&B; --mlflow-uri names a store for them", file=sys.stderr)
    return code


def _sync(rundir: RunDir, uri: str | None, send: bool) -> bool:
    """One run; whether it has anything to do with a tracker."""
    if not rundir.plan.exists():  # it waits in a queue
        return False
    plan = Plan.read(rundir)
    chosen = plan.settings().tracker
    offline = unsent(rundir)
    if not (chosen.mlflow or uri or offline):
        return False
    if _is_alive(rundir):
        print(f"{rundir.path}: is being trained and records for itself; sync it afterwards", file=sys.stderr)
        return True
    if chosen.mlflow or uri:
        print(f"{rundir.path}: mlflow: {_to_mlflow(plan, rundir, chosen, uri)}", flush=True)
    if offline:
        _to_wandb(rundir, offline, send)
    return True


def unsent(rundir: RunDir) -> list[Path]:
    """The folder that W&B wrote offline and ``wandb sync``, which leaves a mark in it, has not sent; or none.

    Of several the newest alone: it holds the run's past, and the one that is sent last is all that the server has.
    """
    newest = sorted(rundir.wandb.glob("offline-run-*"))[-1:]
    return [folder for folder in newest if not any(folder.glob("*.synced"))]


def _is_alive(rundir: RunDir) -> bool:
    status = rundir.read_status()
    heartbeat = status.get("heartbeat")
    recent = isinstance(heartbeat, int | float) and time.time() - heartbeat < _ALIVE_S
    return status.get("state") == "RUNNING" and (recent or rundir.is_locked())


def _to_mlflow(plan: Plan, rundir: RunDir, chosen: TrackerSettings, uri: str | None) -> str:
    """Record what is missing; says what that was."""
    from dataclasses import replace

    from launcher.runtime.trackers.mlflow_run import MlflowRun
    from launcher.runtime.trackers.mlflow_store import place_of

    chosen = replace(chosen, mlflow=True, mlflow_uri=uri or chosen.mlflow_uri)
    require_installed(replace(chosen, wandb=False))
    jobs = [str(event["job_id"]) for event in rundir.attempt_events() if event.get("job_id")]
    labels = plan.labels() | ({"slurm_job_id": jobs[-1]} if jobs else {})
    about = About(rundir, redacted(plan.config_values()), redacted(plan.science), labels=labels)
    place = place_of(chosen, about)
    try:
        run = MlflowRun(about, place, go_on=False)
        run.sync()
        for name, step, picture in _pictures(rundir):
            run.log({name: picture}, step)
    except UserError:
        raise
    except Exception as error:  # MLflow's and its libraries', of many kinds
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{rundir.path}: {place.uri}: {said}; is it there? (tracker.mlflow_uri, --mlflow-uri)"
        ) from error
    return f"{run.recorded} values and files recorded" if run.recorded else "nothing was missing"


def _pictures(rundir: RunDir) -> Iterator[tuple[str, int, Any]]:
    """Name, step and pixels of each picture that TensorBoard has: the run's own files hold numbers only."""
    if not rundir.tensorboard.exists():
        return
    import numpy as np
    from PIL import Image

    with warnings.catch_warnings():  # tensorboard's own protobuf
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(rundir.tensorboard), size_guidance={"images": 0, "tensors": 1, "scalars": 1})
    for name in events.Reload().Tags()["images"]:
        for event in events.Images(name):
            yield name, event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def _to_wandb(rundir: RunDir, offline: Sequence[Path], send: bool) -> None:
    """Send ``offline`` or say how that is done.

    Raises:
        UserError: W&B would not take it.
    """
    command = ["wandb", "sync", *map(str, offline)]
    if not send:
        print(f"{rundir.path}: wandb: {shlex.join(command)}")
        return
    require_installed(TrackerSettings(wandb=True))
    if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        raise UserError(f"{rundir.path}: wandb sync failed; its words are above")
    print(f"{rundir.path}: wandb: {offline[-1].name} sent")
