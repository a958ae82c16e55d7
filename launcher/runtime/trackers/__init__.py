"""Where a run's numbers, texts and pictures go: one tracker each, and all of them behind ``start_trackers``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers.queued import Beside, Queued, Recorder
from launcher.runtime.trackers.values import Value

__all__ = ["About", "Tracker", "Value", "start_trackers"]


class Tracker(Protocol):
    """One place that records a run."""

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record ``values`` as of optimizer step ``step``."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what only the end knows, flush, close. Called once, also after a failure.

        Args:
            summary: what ``summary.json`` says; empty where the run was stopped and goes on later.
        """


@dataclass(frozen=True)
class About:
    """What trackers are told of a run."""

    rundir: RunDir
    config: Mapping[str, Any]
    """The task's config, nested, secrets redacted."""
    science: Mapping[str, Any]
    step: int = 0
    """It goes on after this step: what an earlier attempt recorded beyond it is done again."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What else tells it from others: ``git_sha``, ``slurm_job_id``, ``target``."""


def start_trackers(chosen: TrackerSettings, about: About) -> list[Tracker]:
    """Open the ``chosen`` trackers for a run that goes on after ``about.step``; what lies beyond it is dropped.

    The run's own CSV files are written by whoever logs; the others each on a thread.
    """
    rundir = about.rundir
    trackers: list[Tracker] = []
    if chosen.csv:
        from launcher.runtime.trackers.csv_files import CsvFiles

        trackers.append(CsvFiles(rundir, about.step, curves=chosen.curves))
    openers: dict[str, tuple[Callable[[], Recorder], str]] = {}
    if chosen.tensorboard:
        from launcher.runtime.trackers.tensorboard import TensorBoard

        board = partial(TensorBoard, rundir, about.config, about.science, about.step)
        openers["tensorboard"] = (board, f"the run's numbers are in {rundir.metrics}")
    if chosen.mlflow:
        again = f"record what is missing with: python -m launcher sync {shlex.quote(str(rundir.path))}"
        openers["mlflow"] = (lambda: _mlflow(about, chosen), again)
    if chosen.wandb and chosen.wandb_mode != "disabled":
        openers["wandb"] = (lambda: _wandb(about, chosen), f"the run's numbers are in {rundir.metrics}")
    if openers:
        trackers.append(Beside([Queued(name, *opener) for name, opener in openers.items()], chosen.wait_s))
    return trackers


def _mlflow(about: About, chosen: TrackerSettings) -> Recorder:
    from launcher.runtime.trackers.mlflow_run import MlflowRun
    from launcher.runtime.trackers.mlflow_store import place_of

    return MlflowRun(about, place_of(chosen, about))


def _wandb(about: About, chosen: TrackerSettings) -> Recorder:
    from launcher.runtime.trackers.wandb_run import WandbRun

    return WandbRun(about, chosen)
