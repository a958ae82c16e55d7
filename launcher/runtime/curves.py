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
    name, series = rundir.path.name, read_series(rundir.metrics)
    losses = {key: points for key, points in series.items() if key in ("train/loss", "val/loss")}
    times = {key.removeprefix("time/"): points for key, points in series.items() if key.startswith("time/")}
    if losses:
        _draw(rundir.loss_curve, losses, "loss [nats per target token]", f"Loss of {name}")
    if times:
        _draw(rundir.timing_curve, times, "seconds a step", f"Where a step's time went, {name}")


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


def _wide(series: Series) -> bool:
    """Whether values span so much that a linear axis would show a flat line."""
    values = [v for _, points in series.values() for v in points]
    return min(values) > 0 and max(values) > 20 * min(values)


def _draw(path: Path, series: Series, unit: str, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="optimizer step", ylabel=unit, title=title)
    for name, (steps, values) in series.items():
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 40 else None, markersize=3)
    if _wide(series):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue(), durable=False)  # where the disk is full, no half of it
