"""The two pictures of a run, drawn from its ``metrics.csv``: losses over steps, seconds a step by phase."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

from launcher.runtime.files import write_atomic
from launcher.runtime.rundir import RunDir

Series = dict[str, tuple[list[int], list[float]]]
"""Name of a curve: its steps and its values."""


def draw_curves(rundir: RunDir) -> None:
    """Draw ``loss_curve.png`` and ``timing_curve.png``; one that has no points is not drawn."""
    from launcher.runtime.picture.loss import draw_losses
    from launcher.runtime.picture.timing import draw_times

    name, series = f"{rundir.path.parent.name}/{rundir.path.name}", read_series(rundir.metrics)
    times = {key.removeprefix("time/"): points for key, points in series.items() if key.startswith("time/")}
    if not {"train/loss", "val/loss"}.isdisjoint(series):
        write_atomic(rundir.loss_curve, draw_losses(series, name), durable=False)  # on a full disk no half of it
    if times:
        write_atomic(rundir.timing_curve, draw_times(times, name), durable=False)


def read_series(metrics: Path) -> Series:
    """All curves of a ``metrics.csv``, by ``<split>/<name>``; a row that a crash has torn is none."""
    series: defaultdict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    whole_lines, _, _ = metrics.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    for row in csv.reader(io.StringIO(whole_lines, newline="")):
        try:
            step, split, name, value = row
            point = int(step), float(value)
        except ValueError:  # torn; or the header
            continue
        steps, values = series[f"{split}/{name}"]
        steps.append(point[0])
        values.append(point[1])
    return dict(series)
