"""The number that runs are ranked by, where it comes from, and which way is better."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.sections import nearest
from launcher.runtime.sweepdir import SweepDir
from sweeps.compare.reading import Run

BEST = ":best"
"""Behind the name of a curve: its best value, not its last."""
_LARGER = ("samples_per_s", "tokens_per_s", "mfu")
_STATUS = {"train_loss": "loss", "val_loss": "val_loss", "samples_per_s": "samples_per_s"}
"""What ``status.json`` calls a number of the summary while a run goes on."""


@dataclass(frozen=True)
class Metric:
    """A number of ``summary.json``, or a curve of ``metrics.csv``."""

    name: str
    """As the user writes it: ``best_val_loss``, ``val/loss`` (its last value), ``val/loss:best``."""
    larger: bool
    """Whether larger is better."""

    @property
    def curve(self) -> str | None:
        """Name of the curve that it is a point of; None: a number of the summary."""
        return self.name.removesuffix(BEST) if "/" in self.name else None

    def of(self, run: Run) -> float | None:
        """Of a run that is done; None: it has no such number."""
        if self.curve:
            return self._on(run, self.curve, self.name.endswith(BEST))
        return number(run.summary.get(self.name))

    def so_far(self, run: Run) -> float | None:
        """Of a run that is not done: from its summary, its curves or its status."""
        value = self.of(run)
        if value is None and not self.curve:
            value = self._on(run, curve_like(self.name), self.name.startswith("best_"))
        if value is None:
            value = number(run.status.get(_STATUS.get(self.name, self.name)))
        return value

    def order(self, value: float | None) -> tuple[int, float]:
        """Sorts the best first, what is not finite after all numbers, and what has none last."""
        if value is None:
            return 2, 0.0
        return (0, -value if self.larger else value) if math.isfinite(value) else (1, 0.0)

    def _on(self, run: Run, curve: str, best: bool) -> float | None:
        _, values = run.series.get(curve, ([], []))
        if not values:
            return None
        return min(values, key=self.order) if best else values[-1]


def choose(name: str | None, direction: str | None, runs: Sequence[Run], sweeps: Sequence[SweepDir]) -> Metric:
    """The metric that was asked for; else the sweeps' own; else the validation loss, or the training loss.

    Args:
        direction: ``min`` or ``max`` (or as a sweep's file has it); None: the sweeps' own, else smaller is better.

    Raises:
        UserError: no run has it (those that exist are named, the nearest first), or the sweeps name different ones.
    """
    known = names(runs)
    own = dict.fromkeys(asked for sweep in sweeps if (asked := _asked(sweep)))
    if name is None and len(own) > 1:
        told = ", ".join(f"{metric} ({way})" for metric, way in own)
        raise UserError(f"the sweeps were asked for different metrics: {told}; choose one with --metric NAME")
    name = name or next((metric for metric, _ in own), None) or _usual(known)
    word = name.removesuffix(BEST)
    to_come = curve_like(word) in known and not any(run.is_done for run in runs)  # runs tell where it stands so far
    if (word not in known and not to_come) or (name.endswith(BEST) and "/" not in name):
        near = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, word, other).ratio())
        there = ", ".join(near) if near else "none at all: nothing was logged yet"
        raise UserError(f"metric {name!r}: no run has it{nearest(word, known)} (there are: {there})")
    theirs = dict(own).get(name.removesuffix(BEST), "maximize" if name in _LARGER else "minimize")
    return Metric(name, direction in ("max", "maximize") if direction else theirs == "maximize")


def names(runs: Sequence[Run]) -> list[str]:
    """Every number of a summary and every curve that some run has."""
    found: dict[str, None] = {}
    for run in runs:
        found |= dict.fromkeys(name for name, value in run.summary.items() if number(value) is not None)
        found |= dict.fromkeys(run.series)
    for name, word in _STATUS.items():
        if any(number(run.status.get(word)) is not None for run in runs):
            found[name] = None
    return sorted(found, key=lambda name: ("/" in name, name.startswith("time/"), name))


def number(value: Any) -> float | None:
    """``value`` as a number, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > sys.float_info.max:  # an integer beyond all floats
        return math.inf if value > 0 else -math.inf
    return float(value)


def curve_like(name: str) -> str:
    """The curve that a number of the summary ends: ``val/loss`` of ``best_val_loss``."""
    return name.removeprefix("best_").replace("_", "/", 1)


def _usual(known: Sequence[str]) -> str:
    if "best_val_loss" in known or ("val/loss" in known and "train_loss" not in known):
        return "best_val_loss" if "best_val_loss" in known else "val/loss"
    return "train_loss"


def _asked(sweep: SweepDir) -> tuple[str, str] | None:
    """Metric and direction of the newest request that names them."""
    try:
        requests = sweep.read_requests()
    except UserError:  # torn: the user may still choose
        return None
    for request in reversed(requests if isinstance(requests, list) else []):
        if isinstance(request, Mapping) and isinstance(request.get("metric"), str):
            return request["metric"], "maximize" if request.get("direction") == "maximize" else "minimize"
    return None
