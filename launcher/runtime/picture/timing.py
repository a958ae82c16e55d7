"""``timing_curve.png``: the phases of a step on top of one another, in milliseconds, and the share of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.runtime.picture.canvas import FAINT, INK, Points, as_png, drawing, new_axes

_PHASES = {
    "data": "#E69F00",
    "forward": "#0072B2",
    "backward": "#56B4E9",
    "optimizer": "#009E73",
    "communication": "#CC79A7",
    "save": "#D55E00",
}
"""From the bottom to the top, with colours that everybody can tell apart; what else is logged stands between."""
_OTHERS = ("#999999", "#F0E442", "#7F6DB0")
_SAVE = "save"
"""Told once for each save, not for each step."""
_REST, _LEAST_REST = "other", 0.01
"""What the total has beyond the phases, and the share from which it is shown."""
_MOST_BINS = 150
_OUTLIER = 3.0
"""Steps that take more than so many times the median are left out of the scale and of the shares, and told."""


@dataclass(frozen=True)
class Times:
    """Mean seconds of a step, phase by phase, over stretches of steps that ended with ``steps``."""

    steps: np.ndarray
    """``(S,) int``, rising."""
    weights: np.ndarray
    """``(S,) float``: how many steps each stretch had."""
    phases: dict[str, np.ndarray]
    """Seconds a step ``(S,)``, the lowest of the stack first."""

    @property
    def total(self) -> np.ndarray:
        """Seconds of a whole step ``(S,)``."""
        whole: np.ndarray = np.sum(list(self.phases.values()), axis=0)
        return whole

    def shares(self) -> dict[str, float]:
        """Of all the time that was measured, from 0 to 1; they sum to 1 where there was any."""
        spent = {name: float(np.dot(seconds, self.weights)) for name, seconds in self.phases.items()}
        whole = sum(spent.values())
        return {name: seconds / whole if whole else 0.0 for name, seconds in spent.items()}

    def mean(self) -> float:
        """Seconds of a step, over all of them."""
        return float(np.average(self.total, weights=self.weights))

    def usual(self) -> Times:
        """Without the stretches whose phases take over three times the median: the first step, a node that stood."""
        spent = self.total - self.phases.get(_SAVE, 0.0)
        kept = spent <= _OUTLIER * np.median(spent)
        return Times(self.steps[kept], self.weights[kept], {name: s[kept] for name, s in self.phases.items()})

    def coarser(self, most: int) -> Times:
        """The same in at most ``most`` stretches."""
        if len(self.steps) <= most:
            return self
        groups = np.array_split(np.arange(len(self.steps)), most)
        weights = np.array([self.weights[group].sum() for group in groups])
        phases = {
            name: np.array([np.average(seconds[group], weights=self.weights[group]) for group in groups])
            for name, seconds in self.phases.items()
        }
        return Times(np.array([self.steps[group[-1]] for group in groups]), weights, phases)


def times_of(series: Mapping[str, Points]) -> Times:
    """Put the curves of phases side by side: ``data``, ``forward``, … and ``total``, in seconds a step.

    What is not there at a step, or not finite, is 0; ``save``, the wait for one save, is shared out over the steps
    since the log before. What the total has beyond its phases, where that is more than 1 %, is ``other``.
    """
    per_step = {name: points for name, points in series.items() if name != _SAVE}
    basis = [per_step["total"]] if "total" in per_step else list((per_step or series).values())
    steps = np.unique(np.concatenate([np.asarray(points[0], np.int64) for points in basis]))
    weights = np.maximum(np.diff(steps, prepend=min(0, steps[0])), 1).astype(float)
    found = {name: _at(steps, *points) for name, points in per_step.items()}
    total = found.pop("total", None)
    if total is not None:
        rest = np.maximum(total - np.sum(list(found.values()), axis=0), 0.0)
        if not found:
            found["total"] = total
        elif np.dot(rest, weights) > _LEAST_REST * np.dot(total, weights):
            found[_REST] = rest
    if _SAVE in series:
        found[_SAVE] = _shared_out(steps, weights, *series[_SAVE])
    order = [*_PHASES]
    between = order.index(_SAVE) - 0.5
    names = sorted(found, key=lambda name: (order.index(name) if name in order else between, name))
    return Times(steps, weights, {name: found[name] for name in names})


def draw_times(series: Mapping[str, Points], name: str) -> bytes:
    """A PNG of the phases ``series``, seconds a step, of the run ``name``."""
    times = times_of(series)
    with drawing():
        axes = new_axes(f"Where a step's time goes, {name}", "milliseconds a step")
        _stack(axes, times)
        axes.set_ylim(0, _top(axes, 1e3 * times.total, times.steps))
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, alignment="left")
        return as_png(axes)


def _stack(axes: Any, times: Times) -> None:
    usual, coarse = times.usual(), times.coarser(_MOST_BINS)
    total = coarse.total
    x, rows = coarse.steps, list(coarse.phases.values())
    if len(x) == 1:  # an area needs two sides
        x, rows, total = np.array([x[0] - 0.5, x[0] + 0.5]), [np.repeat(row, 2) for row in rows], np.repeat(total, 2)
    others = iter(_OTHERS * len(rows))
    bottom = np.zeros(len(x))
    for (phase, share), row in zip(usual.shares().items(), rows, strict=True):
        colour = _PHASES.get(phase) or next(others)
        top = bottom + 1e3 * row
        label = f"{_percent(share)}  {phase}"
        axes.fill_between(x, bottom, top, color=colour, linewidth=0, alpha=0.85, label=label)
        bottom = top
    axes.plot(x, 1e3 * total, color=INK, linewidth=1.4, label=f"total, {1e3 * usual.mean():.3g} ms on average")
    axes.margins(x=0)


def _top(axes: Any, total: np.ndarray, steps: np.ndarray) -> float:
    """Upper end of the axis: what is usual. Steps far beyond it, as the first often is, are told in words."""
    usual = _OUTLIER * float(np.median(total))
    kept = total[total <= usual] if usual else total
    top = 1.12 * float(kept.max()) or 1.0
    if beyond := int(np.sum(total > top)):
        longest = int(np.argmax(total))
        words = f"step {steps[longest]}: {total[longest]:.0f} ms"
        words += "" if beyond == 1 else f", and {beyond - 1} more beyond the axis"
        axes.text(0.01, 0.97, f"▲ {words}", transform=axes.transAxes, va="top", fontsize=9, color=INK,
                  bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": FAINT, "alpha": 0.9})  # fmt: skip
    return top


def _at(steps: np.ndarray, where: Any, values: Any) -> np.ndarray:
    """The newest of ``values`` at each of ``steps``; 0 where there is none."""
    known = {int(step): float(value) for step, value in zip(where, values, strict=True)}
    found = np.array([known.get(int(step), 0.0) for step in steps])
    return np.where(np.isfinite(found), found, 0.0)


def _shared_out(steps: np.ndarray, weights: np.ndarray, where: Any, values: Any) -> np.ndarray:
    """Seconds that were spent once, at ``where``, as seconds of each step of the stretch that they fall into."""
    seconds = np.nan_to_num(np.asarray(values, float), nan=0.0, posinf=0.0, neginf=0.0)
    places = np.minimum(np.searchsorted(steps, np.asarray(where)), len(steps) - 1)
    each: np.ndarray = np.bincount(places, seconds, minlength=len(steps)) / weights
    return each


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
