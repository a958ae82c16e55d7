"""What all pictures have in common: colours that everybody can tell apart, axes, and a file that is whole."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Blue, vermillion, green, purple, orange, sky: told apart with any colour vision (Okabe and Ito 2008, "Color Universal
Design"). Black and yellow are left out: ink, and too pale on white."""
INK, FAINT = "#334155", "#94a3b8"
_WIDE = 20
"""From such a ratio of largest to smallest on a linear axis would show a flat line."""

Points = tuple[Sequence[int], Sequence[float]]
"""Steps and values of a curve."""


@contextmanager
def drawing() -> Iterator[None]:
    """Names of runs and settings are no formulas, and a letter that the font has not is no warning."""
    from matplotlib import rc_context

    with warnings.catch_warnings(), rc_context({"text.parse_math": False}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def new_axes(title: str, ylabel: str) -> Any:
    """Axes over optimizer steps in a figure of their own, 1080 by 600 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="optimizer step", ylabel=ylabel)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return axes


def make_logarithmic(axes: Any) -> None:
    """Losses on a logarithmic axis, with numbers at 1, 2 and 5 that are no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def as_png(axes: Any) -> bytes:
    """The figure of ``axes``; the same bytes for the same drawing."""
    picture = io.BytesIO()
    axes.figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def is_wide(values: Sequence[float] | np.ndarray) -> bool:
    """Whether finite ``values`` span so much that a linear axis would show a flat line."""
    if not len(values):
        return False
    least, most = float(min(values)), float(max(values))
    return 0 < _WIDE * least < most
