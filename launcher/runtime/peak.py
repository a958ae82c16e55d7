"""The most that a rank's device computes in a second: as the config says, or measured by products of matrices."""

from __future__ import annotations

import logging
import time
from typing import Literal

import torch

log = logging.getLogger(__name__)

_BUDGET_S = 0.1
_SMALLEST = 256
"""Rows and columns of the first product; each next one has twice as many."""
_LARGEST = {"cpu": 2048, "cuda": 8192}
"""Where a device reaches its peak; on a CPU the matrices of this size stay below what torch itself takes of memory."""
_MOST_OF_FREE = 0.1
"""Share of a GPU's free memory that the three matrices may take."""


def peak_flops(wanted: float | Literal["measure"] | None, device: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of one rank's device: ``wanted`` TFLOP/s, or measured now; None: nobody wants to know."""
    if wanted is None:
        return None
    if wanted != "measure":
        return wanted * 1e12
    peak, size = measured_flops(device, dtype)
    log.info("peak of this rank's device: %.3g TFLOP/s (%s, products of %dx%d)", peak / 1e12, dtype, size, size)
    return peak


@torch.no_grad()
def measured_flops(device: str, dtype: torch.dtype) -> tuple[float, int]:
    """FLOP/s of the fastest product of two square ``dtype`` matrices on ``device``, and their rows.

    It takes about 0.1 s, and on a GPU the time in which cuBLAS starts. Threads and flags are used as they stand; no
    random numbers are drawn; the statistic of the GPU's peak memory begins anew behind it.
    """
    until = time.perf_counter() + _BUDGET_S
    size = _SMALLEST
    best, at = 0.0, size
    while True:
        began = time.perf_counter()
        seconds = _seconds(size, device, dtype, until)
        if 2 * size**3 / seconds > best:
            best, at = 2 * size**3 / seconds, size
        # A product of twice the size takes eight times as long, two matrices to multiply four times.
        now = time.perf_counter()
        took = max(now - began, 2 * seconds)
        if now + 6 * took <= until and _fits(2 * size, device, dtype):
            size *= 2
        elif now + took > until:  # else the same once more: something else may have had the processor
            break
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best, at


def _seconds(size: int, device: str, dtype: torch.dtype, until: float) -> float:
    """Of the fastest of a few products; the first is a rehearsal, which may load or compile something."""
    # Not all equal: a processor draws less power for such, and is faster. Not random: nobody's generator is touched.
    left = torch.arange(size * size, device=device, dtype=torch.float32).remainder_(251).sub_(125).div_(125)
    left = left.view(size, size).to(dtype)
    right, product = left.t().contiguous(), torch.empty_like(left)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and time.perf_counter() < until):
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait(device)
        times.append(time.perf_counter() - began)
    return max(min(times[1:]), 1e-9)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _fits(size: int, device: str, dtype: torch.dtype) -> bool:
    kind = device.partition(":")[0]
    if size > _LARGEST[kind]:
        return False
    needed = 3 * size * size * max(dtype.itemsize, torch.float32.itemsize)  # the pattern is made in fp32
    return kind == "cpu" or needed <= _MOST_OF_FREE * torch.cuda.mem_get_info(device)[0]
