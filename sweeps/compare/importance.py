"""Which parameter mattered: the share of a metric's variance that the groups of one parameter explain."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

_FEWEST_WITHIN = 3
"""Degrees of freedom within groups below which a share says nothing."""
_MOST_VALUES = 6
"""Numbers that take more values than this are grouped by quantiles."""
_MOST_BINS = 5
_RUNS_A_BIN = 4


@dataclass(frozen=True)
class Importance:
    """What one parameter explains, alone."""

    key: str
    share: float | None
    """Epsilon squared, 0 to 1; None: it cannot be told."""
    runs: int
    """Runs that it was told from."""
    groups: int
    """Values, or bins of values, that were told apart."""
    binned: bool = False
    """Whether near values were put into groups."""
    note: str = ""
    """Why there is no share; or how values were grouped, and what moved together with it."""


def epsilon_squared(groups: Sequence[Sequence[float]]) -> float | None:
    """The share of variance that groups explain in a one-way analysis of variance, without the bias of eta squared.

    ``1 - (SS_within / (n - k)) / (SS_total / (n - 1))`` for n numbers in k groups (Kelley 1935, "An unbiased
    correlation ratio measure", PNAS 21(9)). Eta squared, ``1 - SS_within / SS_total``, grows with the number of groups
    where nothing is explained: it is (k-1)/(n-1) on average, and 1 for one run a value. Epsilon squared is 0 there on
    average, and of the usual corrections (omega squared among them) the least biased (Okada 2013, "Is omega squared
    less biased?", Behaviormetrika 40(2)). Chance can make it negative.

    It is a *main effect*: what a parameter does only together with another is not in it.

    Returns:
        At most 1; None where there is one group, where fewer than three degrees of freedom are left within groups, or
        where all numbers are equal.
    """
    numbers = [value for group in groups for value in group]
    n, k = len(numbers), sum(bool(group) for group in groups)
    if k < 2 or n - k < _FEWEST_WITHIN:
        return None
    centre = math.fsum(value / n for value in numbers)
    scale = max(abs(value - centre) for value in numbers)
    if scale <= 1e-12 * max(map(abs, numbers)):
        return None
    total = math.fsum(((value - centre) / scale) ** 2 for value in numbers)
    within = 0.0
    for group in filter(None, groups):
        mean = math.fsum(value / len(group) for value in group)
        within += math.fsum(((value - mean) / scale) ** 2 for value in group)
    return 1 - (within / (n - k)) / (total / (n - 1))


def importance(key: str, values: Sequence[Any], metric: Sequence[float], *, ordered: bool = True) -> Importance:
    """What the parameter ``key`` explains of ``metric`` (finite numbers), its ``values`` beside it.

    Args:
        ordered: whether numbers near each other mean nearly the same; a seed's do not.
    """
    labels, binned = _labels(values, ordered)
    groups: defaultdict[Hashable, list[float]] = defaultdict(list)
    for label, number in zip(labels, metric, strict=True):
        groups[label].append(number)
    n, k = len(metric), len(groups)
    share = epsilon_squared(list(groups.values()))
    if share is None:
        return Importance(key, None, n, k, False, _why_not(n, k, metric))
    note = f"{len(set(map(_plain, values)))} values in {k} groups by quantiles" if binned else ""
    return Importance(key, max(0.0, share), n, k, binned, note)


def same_partition(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two parameters always changed together: nothing can tell which of them mattered."""
    pairs = len(set(zip(map(_plain, first), map(_plain, second), strict=True)))
    return pairs == len(set(map(_plain, first))) == len(set(map(_plain, second)))


def _why_not(n: int, k: int, metric: Sequence[float]) -> str:
    if k < 2:
        return "the same in all runs with a metric"
    if n - k < _FEWEST_WITHIN:
        return f"too few runs: {n} for {k} values; repeat values, or add seeds"
    return f"the metric is {metric[0]:.6g} in all runs"


def _labels(values: Sequence[Any], ordered: bool) -> tuple[list[Hashable], bool]:
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    distinct = len(set(map(_plain, values)))
    bins = min(_MOST_BINS, len(values) // _RUNS_A_BIN)
    crowded = distinct > _MOST_VALUES or len(values) - distinct < _FEWEST_WITHIN
    if not (ordered and numeric and crowded and 2 <= bins < distinct):
        return list(map(_plain, values)), False
    in_order = sorted(values)
    edges = [in_order[len(values) * i // bins] for i in range(1, bins)]
    return [sum(value >= edge for edge in edges) for value in values], True


def _plain(value: Any) -> Hashable:
    return (bool, value) if isinstance(value, bool) else (float, value)
