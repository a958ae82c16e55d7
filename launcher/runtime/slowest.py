"""Which rank the others wait for: the seconds that each phase of a step takes, side by side over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_PHASES = ("data", "forward")
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


class PhaseBoard:
    """Where the ranks tell each other the seconds of a step: words of theirs that travel with those of an agreement."""

    def __init__(self, rank: int, hosts: Sequence[str]) -> None:
        """``hosts`` is the node of each rank."""
        self._rank, self._hosts = rank, hosts
        self._seconds: dict[str, Sequence[float]] = {}

    def words(self, last: Mapping[str, float]) -> list[float]:
        """The seconds that ``last`` tells of this rank, in its own places; 0 in those of the others."""
        words = [0.0] * (len(_PHASES) * len(self._hosts))
        for i, phase in enumerate(_PHASES):
            words[self._rank * len(_PHASES) + i] = last.get(f"time/{phase}", 0.0)
        return words

    def hear(self, words: Sequence[float]) -> None:
        """The largest of each word over the ranks: all of them, as each fills in its own."""
        self._seconds = {phase: words[i :: len(_PHASES)] for i, phase in enumerate(_PHASES)}

    def slowest(self) -> dict[str, float | str]:
        """``slowest`` of what was heard; nothing in a world of one."""
        known = {phase: seconds for phase, seconds in self._seconds.items() if any(seconds)}
        return slowest(known, self._hosts) if len(self._hosts) > 1 else {}
