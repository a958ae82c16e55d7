"""``loss_curve.png``: the training loss, faint as logged and smoothed; the validation loss, and its best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.runtime.picture.canvas import COLOURS, INK, Points, as_png, drawing, is_wide, make_logarithmic, new_axes

_FEW = 40
"""Up to so many points are told apart by markers, and are not smoothed."""
_SHARE, _WIDEST = 1 / 30, 501
"""What one smoothed point is the mean of: a share of all points, at most so many."""


def draw_losses(series: Mapping[str, Points], name: str) -> bytes:
    """A PNG of ``train/loss`` and ``val/loss``, as far as they are there; ``train/epoch`` makes a second axis.

    Args:
        name: of the run.
    """
    curves = {key: _arrays(series[key]) for key in ("train/loss", "val/loss") if key in series}
    finite = np.concatenate([values[np.isfinite(values)] for _, values in curves.values()])
    with drawing():
        axes = new_axes(f"Loss of {name}", "loss [nats per target token]")
        logarithmic = is_wide(finite)
        if logarithmic:
            make_logarithmic(axes)
        if "train/loss" in curves:
            _draw_training(axes, *curves["train/loss"], logarithmic)
        if "val/loss" in curves:
            _draw_validation(axes, *curves["val/loss"])
        if not len(finite):
            axes.text(0.5, 0.5, "no loss was finite", transform=axes.transAxes, ha="center", color=INK)
        if "train/epoch" in series:
            _add_epochs(axes, *_arrays(series["train/epoch"]))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper right")
        return as_png(axes)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Of ``values`` ``(N,)`` the mean of the finite ones in a window of ``width`` points around each; NaN: none is."""
    width = min(width, 2 * len(values) - 1)
    finite = np.isfinite(values)
    window = np.ones(width)
    counts = np.convolve(finite, window, "full")[width // 2 :][: len(values)]
    sums = np.convolve(np.where(finite, values, 0.0), window, "full")[width // 2 :][: len(values)]
    means: np.ndarray = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)
    return means


def _draw_training(axes: Any, steps: np.ndarray, values: np.ndarray, logarithmic: bool) -> None:
    colour, n = COLOURS[0], len(values)
    if n <= _FEW:
        axes.plot(steps, values, color=colour, marker=".", linewidth=1.6, label="training")
    else:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        width = min(_WIDEST, max(3, int(n * _SHARE))) | 1
        if logarithmic:  # the middle of what is seen there is that of the logarithms
            with np.errstate(divide="ignore", invalid="ignore"):
                line = np.exp(smoothed(np.log(values), width))
        else:
            line = smoothed(values, width)
        axes.plot(steps, line, color=colour, linewidth=1.8, label=f"training, mean of {width} points")
    lost = steps[~np.isfinite(values)]
    if len(lost):
        axes.axvline(lost[0], color=INK, linestyle=":", label=f"not finite in step {lost[0]}")


def _draw_validation(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    colour = COLOURS[1]
    marker = "o" if len(steps) <= 2 * _FEW else None
    axes.plot(steps, values, color=colour, marker=marker, markersize=4, linewidth=1.6, label="validation", zorder=3)
    if not np.isfinite(values).any():
        return
    best = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
    star = {"marker": "*", "markersize": 15, "color": colour, "markeredgecolor": "white", "linestyle": "none"}
    axes.plot(steps[best], values[best], zorder=4, label=f"best {values[best]:.4g} in step {steps[best]}", **star)


def _add_epochs(axes: Any, steps: np.ndarray, epochs: np.ndarray) -> None:
    """The same axis counted in epochs, above; a step is the same share of each epoch."""
    if not (steps[-1] > 0 and np.isfinite(epochs[-1]) and epochs[-1] > 0):
        return
    epochs_per_step = epochs[-1] / steps[-1]
    above = axes.secondary_xaxis("top", functions=(lambda step: step * epochs_per_step, lambda e: e / epochs_per_step))
    above.set_xlabel("epoch", color=INK)
    above.spines["top"].set_visible(False)


def _arrays(points: Points) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(points[0], np.int64), np.asarray(points[1], np.float64)
