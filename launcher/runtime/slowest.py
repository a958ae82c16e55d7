"""Which rank the others wait for: the seconds that each phase of a step takes, side by side over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PHASES = ("data", "forward")
"""Parts of a step in which no rank waits for another; a task logs their seconds as ``time/data``, ``time/forward``."""
_FACTOR = 1.5
"""A rank is named where it takes more than so many times the mean."""


def slowest(table: Mapping[str, Sequence[float]], hosts: Sequence[str]) -> dict[str, float | str]:
    """``ranks/<phase>_max_s`` and ``ranks/<phase>_mean_s`` of each phase.

    ``ranks/slowest`` names a rank that takes more than 1.5 times the mean, in the phase in which it loses the most
    seconds: ``rank 3 on n2: forward 0.41 s, mean 0.22 s``. Where there is none it is left out.

    Args:
        table: seconds a step of each rank, by phase; NaN where it has no figure. Only phases in which no rank waits for
            another (data, forward): in the others all seem as slow as the slowest, or those that wait seem to be it.
        hosts: the node of each rank.
    """
    found: dict[str, float | str] = {}
    worst = 0.0
    for phase, seconds in table.items():
        known = [value for value in seconds if math.isfinite(value)]
        if not known:
            continue
        most, mean = max(known), sum(known) / len(known)
        found |= {f"ranks/{phase}_max_s": most, f"ranks/{phase}_mean_s": mean}
        if most > _FACTOR * mean and most - mean > worst:
            worst = most - mean
            rank = seconds.index(most)
            found["ranks/slowest"] = f"rank {rank} on {hosts[rank]}: {phase} {most:.3g} s, mean {mean:.3g} s"
    return found
