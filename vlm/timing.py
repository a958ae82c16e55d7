"""Where a step's time goes, without holding the GPU up: clocks on a CPU, events on a GPU, read when both are done."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from launcher.runtime.spans import span


class StepTimer:
    """Seconds by phase, summed over steps until ``means`` is asked for."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block under ``name``, on the device that computes; a profiler's trace names it so."""
        if self._on_gpu and name != "data":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            with span(name):
                yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            with span(name):
                yield
            self._seconds[name] += time.perf_counter() - began

    def step_done(self) -> None:
        """A whole step has been timed."""
        self._steps += 1

    def means(self) -> dict[str, float]:
        """Seconds a step by phase and in ``total``, since the last call; on a GPU this waits for it."""
        if self._events:
            torch.cuda.synchronize()
        for name, start, end in self._events:
            self._seconds[name] += start.elapsed_time(end) / 1e3
        steps = max(self._steps, 1)
        means = {name: seconds / steps for name, seconds in self._seconds.items()}
        self._seconds.clear()
        self._events.clear()
        self._steps = 0
        return means | {"total": sum(means.values())}
