"""Where the ranks tell each other their figures of a step: words that travel with those of an agreement."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.runtime.distributed import from_all_ranks
from launcher.runtime.memory import forget_peak, largest, peak_bytes
from launcher.runtime.slowest import PHASES, slowest

log = logging.getLogger(__name__)

_FIGURES = (*PHASES, "memory")


class RankBoard:
    """Seconds of a step and peak memory, side by side over all ranks; in a world of one its own."""

    def __init__(self, rank: int, hosts: Sequence[str], device: str) -> None:
        """``hosts`` is the node of each rank, ``device`` this one's."""
        self._rank, self._hosts, self._device = rank, hosts, device
        self._own = dict.fromkeys(_FIGURES, 0.0)
        self._heard = {name: [0.0] * len(hosts) for name in _FIGURES}
        self._largest_at = ""
        forget_peak(device)

    def note(self, values: Mapping[str, Any]) -> None:
        """This rank's figures as of a log: the seconds that ``values`` tell, and its peak memory so far."""
        self._own = {phase: float(values.get(f"time/{phase}", 0.0)) for phase in PHASES}
        self._own["memory"] = float(peak_bytes(self._device))

    def words(self) -> list[float]:
        """This rank's figures in its own places; 0 in those of the others."""
        words = [0.0] * (len(_FIGURES) * len(self._hosts))
        start = self._rank * len(_FIGURES)
        words[start : start + len(_FIGURES)] = [self._own[name] for name in _FIGURES]
        return words

    def hear(self, words: Sequence[float]) -> None:
        """The largest of each word over the ranks: all of them, as each fills in its own."""
        self._heard = {name: list(words[i :: len(_FIGURES)]) for i, name in enumerate(_FIGURES)}

    def told(self) -> dict[str, float | str]:
        """What rank 0 logs: ``memory/peak_bytes``, the largest of the ranks', and in a world of several ``slowest``.

        The other ranks' figures are as of the log before. ``memory/peak_rank`` (``rank 3 on n2``) is told when another
        rank than before has the largest.
        """
        most, where = largest(self._with_own("memory"), self._hosts)
        found: dict[str, float | str] = {"memory/peak_bytes": most}
        if len(self._hosts) == 1:
            return found
        if where != self._largest_at:
            self._largest_at = found["memory/peak_rank"] = where
        return found | slowest({phase: s for phase in PHASES if any(s := self._heard[phase])}, self._hosts)

    def final(self) -> dict[str, Any]:
        """What a summary says of memory: ``peak_memory_bytes`` and whose it was. Every rank calls it, once."""
        own = peak_bytes(self._device)
        log.info("peak memory: %.4g GB", own / 1e9)
        most, where = largest(from_all_ranks(own), self._hosts)
        return {"peak_memory_bytes": int(most), "peak_memory_rank": where if len(self._hosts) > 1 else None}

    def _with_own(self, name: str) -> list[float]:
        """What was heard, with this rank's figure as it is now."""
        return [self._own[name] if rank == self._rank else value for rank, value in enumerate(self._heard[name])]
