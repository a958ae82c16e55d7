"""Numbers as CSV: every one in ``metrics.csv``, losses and timings also side by side, and both drawn at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.runtime.curves import draw_curves
from launcher.runtime.rundir import RunDir
from launcher.runtime.tables import StepTable
from launcher.runtime.trackers.values import Value

log = logging.getLogger(__name__)

LOSS_COLUMNS = {"epoch": "train/epoch", "train_loss": "train/loss", "val_loss": "val/loss"}
TIMING_COLUMNS = {f"{phase}_s": f"time/{phase}" for phase in ("data", "forward", "backward", "optimizer", "total")}


class CsvFiles:
    """The CSV files of a run directory and the curves drawn from them."""

    def __init__(self, rundir: RunDir, step: int, *, curves: bool = True) -> None:
        """``curves``: draw them at the end."""
        self._rundir, self._curves = rundir, curves
        self._metrics = StepTable(rundir.metrics, ["step", "split", "name", "value"], step)
        self._losses = StepTable(rundir.losses, ["step", *LOSS_COLUMNS], step)
        self._timings = StepTable(rundir.timings, ["step", *TIMING_COLUMNS], step)

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """A row of ``metrics.csv`` a number; a row of the other two where they have something to say."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float | np.number)}
        self._metrics.add([[step, *_split(name), repr(float(value))] for name, value in numbers.items()])
        if "train/loss" in numbers or "val/loss" in numbers:
            self._losses.add([[step, *(numbers.get(name, "") for name in LOSS_COLUMNS.values())]])
        if "time/total" in numbers:
            self._timings.add([[step, *(numbers.get(name, "") for name in TIMING_COLUMNS.values())]])

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the files and draw the curves; not of a run that was stopped, as drawing takes seconds of its grace."""
        for table in (self._metrics, self._losses, self._timings):
            table.close()
        if summary and self._curves:
            self._draw()

    def _draw(self) -> None:
        try:
            draw_curves(self._rundir)
        except OSError:  # of a full disk the run's end speaks
            raise
        except Exception as error:  # matplotlib's: a run that has trained must not fail because it cannot be drawn
            again = f"python -m launcher curves {self._rundir.path}"
            log.warning("no curves (%s: %s); draw them with: %s", type(error).__name__, error, again)


def _split(name: str) -> tuple[str, str]:
    split, slash, rest = name.partition("/")
    return (split, rest) if slash else ("", name)
