"""Where a run's numbers, texts and pictures go: one tracker each, and all of them behind ``start_trackers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import TrackerSettings

Value = float | str | np.ndarray
"""A number, a text, or a picture: ``(H, W, 3) uint8``. Names read ``<split>/<name>``, e.g. ``train/loss``."""


class Tracker(Protocol):
    """One place that records a run."""

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record ``values`` as of optimizer step ``step``."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what only the end knows, flush, close. Called once, also after a failure.

        Args:
            summary: what ``summary.json`` says; empty where the run was stopped and goes on later.
        """


def start_trackers(
    chosen: TrackerSettings, rundir: RunDir, config: Mapping[str, Any], science: Mapping[str, Any], step: int
) -> list[Tracker]:
    """Open the ``chosen`` trackers for a run that goes on after ``step``; what lies beyond it is dropped."""
    trackers: list[Tracker] = []
    if chosen.csv:
        from launcher.runtime.trackers.csv_files import CsvFiles

        trackers.append(CsvFiles(rundir, step, curves=chosen.curves))
    if chosen.tensorboard:
        from launcher.runtime.trackers.tensorboard import TensorBoard

        trackers.append(TensorBoard(rundir, config, science, step))
    return trackers
