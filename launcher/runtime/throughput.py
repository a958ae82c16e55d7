"""How fast a training is: what it gets through in a second, and the share of its devices' peak that this takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Counts what a task trains on, and the time that is training: what is logged, validated or saved between is not.

    ::

        rates.begin()
        for step in ...:
            ...
            rates.add(samples=16, tokens=480)
            session.log(rates.told(), step)
            rates.begin()
            with rates.pause():
                session.save(state)
    """

    def __init__(self, *, flops_per_sample: float, peak_flops: float | None, ranks: int) -> None:
        """
        Args:
            flops_per_sample: floating point operations that the model takes for a sample, forward and backward.
            peak_flops: FLOP/s that one rank's device could do at most (``Session.peak_flops``); None: not known.
        """
        self._flops_per_sample, self._peak_flops, self._ranks = flops_per_sample, peak_flops, ranks
        self._counts: Counter[str] = Counter()
        self._began = time.perf_counter()

    def begin(self) -> None:
        """From now on it is training time, with nothing counted yet."""
        self._counts.clear()
        self._began = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done in the block is no training: a save, a validation, a log."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def add(self, **counts: int) -> None:
        """A step has trained on so many ``samples`` and whatever else is counted, over all ranks."""
        self._counts.update(counts)

    def told(self) -> dict[str, float]:
        """``train/<what>_per_s`` of all that was counted since ``begin``; ``train/mfu`` where the peak is known."""
        seconds = time.perf_counter() - self._began
        rates = {f"train/{what}_per_s": count / seconds for what, count in self._counts.items()}
        if self._peak_flops is not None:
            flops_per_s = rates["train/samples_per_s"] * self._flops_per_sample
            rates["train/mfu"] = utilisation(flops_per_s, self._peak_flops, self._ranks)
        return rates


def utilisation(flops_per_s: float, peak_flops: float, ranks: int) -> float:
    """Model FLOPs utilisation (arXiv 2204.02311, appendix B): the share of the peak that the model's own work takes.

    Args:
        flops_per_s: what all ranks together get done; recomputed or padded work does not count.
        peak_flops: FLOP/s of one rank's device. Where it was measured the share may come out above 1.
    """
    return flops_per_s / (peak_flops * ranks)
