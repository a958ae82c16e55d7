"""Which rank the others wait for: the seconds that each phase of a step takes, side by side over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

_FACTOR = 1.5
"""A rank is named where it takes more than so many times the mean."""


def slowest(
    values: Mapping[str, float], hosts: Sequence[str], group: dist.ProcessGroup | None
) -> dict[str, float | str]:
    """``ranks/<phase>_max_s`` and ``ranks/<phase>_mean_s`` of each phase; the same on every rank.

    ``ranks/slowest`` names a rank that takes more than 1.5 times the mean, in the phase in which it loses the most
    seconds: ``rank 3 on n2: forward 0.41 s, mean 0.22 s``. Where there is none it is left out.

    One small all-gather: every rank calls it, in the same place. In a world of one there is nothing to compare: ``{}``.

    Args:
        values: this rank's seconds a step, by phase; every rank has the same phases, NaN where it has no figure. Give
            only phases in which no rank waits for another (data, forward): in the others all seem as slow as the
            slowest, or those that wait seem to be it.
        hosts: the node of each rank.
        group: a gloo group of all ranks that nothing else is under way on; None: there is one rank.
    """
    if group is None or len(hosts) == 1 or not values:
        return {}
    phases = sorted(values)
    mine = torch.tensor([values[phase] for phase in phases], dtype=torch.float64)
    everyone = [torch.empty_like(mine) for _ in hosts]
    dist.all_gather(everyone, mine, group=group)
    table = {phase: [float(seconds[column]) for seconds in everyone] for column, phase in enumerate(phases)}
    return compare(table, hosts)


def compare(table: Mapping[str, Sequence[float]], hosts: Sequence[str]) -> dict[str, float | str]:
    """The figures of ``slowest`` for ``table``: each phase's seconds by rank."""
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
