"""Sets of moments, as sorted lists of (start, end) that do not touch; all in microseconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

Interval = tuple[float, float]
Intervals = list[Interval]


def union(parts: Iterable[Interval]) -> Intervals:
    """All moments of ``parts``, which may be in any order, overlap and be empty."""
    merged: Intervals = []
    for start, end in sorted(parts):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def common(first: Intervals, second: Intervals) -> Intervals:
    """The moments that are in both."""
    found: Intervals = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            found.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(first: Intervals, second: Intervals) -> Intervals:
    """The moments of ``first`` that are not in ``second``."""
    if not second:
        return first
    gaps: Intervals = []
    at = float("-inf")
    for start, end in second:
        gaps.append((at, start))
        at = end
    return common(first, [*gaps, (at, float("inf"))])


def total(parts: Intervals) -> float:
    """How long they are together."""
    return sum(end - start for start, end in parts)


def holds(parts: Intervals, moment: float) -> bool:
    """Whether ``moment`` is in one of ``parts``."""
    place = bisect_right(parts, (moment, float("inf"))) - 1
    return place >= 0 and parts[place][0] <= moment < parts[place][1]
