"""The curves of many runs in one picture: the best in colour, all others faint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from launcher.manage.terminal import printable
from launcher.runtime.curves import Series
from launcher.runtime.errors import UserError
from launcher.runtime.picture.canvas import COLOURS, FAINT, as_png, drawing, is_wide, make_logarithmic, new_axes
from sweeps.compare.columns import described
from sweeps.compare.metric import Metric, curve_like
from sweeps.compare.report import Member, Report, settings_shown
from sweeps.compare.table import number

_BEST = 5
MOST_POINTS = 300
"""Of a curve, in the picture and in the page."""

Points = tuple[list[int], list[float]]


def curve_of(metric: Metric, members: Sequence[Member]) -> str | None:
    """Name of the curve that tells most about ``metric``; None: no run has logged one."""
    known = dict.fromkeys(name for member in members for name in member.run.series)
    wanted = (metric.curve, curve_like(metric.name), "val/loss", "train/loss", *known)
    return next((name for name in wanted if name in known), None)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` of the finite points: first, last, and of each stretch between the lowest and the highest."""
    finite = [(step, value) for step, value in zip(*points, strict=True) if math.isfinite(value)]
    if len(finite) > most:
        inner, stretches = finite[1:-1], max(1, (most - 2) // 2)
        kept = [finite[0]]
        for index in range(stretches):
            part = inner[len(inner) * index // stretches : len(inner) * (index + 1) // stretches]
            ends = (part.index(min(part, key=lambda p: p[1])), part.index(max(part, key=lambda p: p[1])))
            kept += [part[at] for at in sorted(set(ends))]
        finite = [*kept, finite[-1]]
    return [step for step, _ in finite], [value for _, value in finite]


def mean_of(curves: Sequence[Points]) -> Points:
    """The mean at the steps that all of ``curves`` have, each once."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    common = [step for step in values[0] if all(step in known for known in values)]
    return common, [sum(known[step] for known in values) / len(values) for step in common]


def draw(report: Report) -> bytes:
    """A PNG; the same bytes for the same runs.

    Raises:
        UserError: no run has logged a curve.
    """
    members = [*report.ranked, *report.unranked]
    name = curve_of(report.metric, members)
    if name is None:
        raise UserError("--plot: no run has logged a curve; there is nothing to draw")
    with drawing():
        axes = new_axes(f"{name} of {len(members)} runs, best by {report.metric.name}", name)
        _draw_faint(axes, report, members, name)
        _draw_best(axes, report, name)
        _finish(axes, [value for member in members for value in thinned(member.run.series.get(name, ([], [])))[1]])
        return as_png(axes)


def _draw_faint(axes: Any, report: Report, members: Sequence[Member], name: str) -> None:
    """All runs but those of the best settings."""
    from matplotlib.collections import LineCollection

    best = {member.run.rundir.path for setting in report.settings[:_BEST] for member in setting.members}
    lines = [_segment(member.run.series, name) for member in members if member.run.rundir.path not in best]
    axes.add_collection(LineCollection([s for s in lines if s], colors=FAINT, linewidths=0.7, alpha=_alpha(len(lines))))


def _draw_best(axes: Any, report: Report, name: str) -> None:
    """The best settings, a colour each, the best of them on top: the mean over seeds, and thin the seeds themselves."""
    for place, setting in reversed(list(enumerate(report.settings[:_BEST]))):
        words = described(settings_shown(report, setting.first, seeds=False)) or setting.first.run_id
        spread = "" if setting.spread is None else f" ± {setting.spread:.2g}"
        label = f"{number(setting.mean)}{spread}  {printable(words)[:70]}"
        curves = [member.run.series.get(name, ([], [])) for member in setting.members]
        style = {"color": COLOURS[place], "zorder": 10 - place}
        if len(curves) > 1:
            for curve in curves:
                axes.plot(*thinned(curve), linewidth=0.7, alpha=0.5, **style)
        axes.plot(*thinned(mean_of(curves)), linewidth=2, label=label, **style)


def _segment(series: Series, name: str) -> list[tuple[int, float]]:
    return list(zip(*thinned(series.get(name, ([], []))), strict=True))


def _alpha(runs: int) -> float:
    return max(0.08, min(0.5, 20 / max(runs, 1)))


def _finish(axes: Any, values: Sequence[float]) -> None:
    axes.autoscale_view()
    if is_wide(values):
        make_logarithmic(axes)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False)
