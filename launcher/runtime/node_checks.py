"""Whether a node can write, compute and add with others: what a run's preflight and the doctor's job both try.

Nothing is drawn from a random generator, and nothing is left behind.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

_PROBE = bytes(range(256)) * 16
_SIDE = 256
"""Rows and columns of the matrices: all numbers stay whole and below 2^24, which fp32 holds exactly."""


def try_file(path: Path) -> None:
    """Write a small file, sync it, read it, remove it.

    Raises:
        OSError: that cannot be done; or what is read is not what was written.
    """
    try:
        with path.open("wb", buffering=0) as file:
            file.write(_PROBE)
            os.fsync(file.fileno())
        if path.read_bytes() != _PROBE:
            raise OSError(errno.EIO, "what is read is not what was written", str(path))
    finally:
        path.unlink(missing_ok=True)


def try_product(device: str) -> None:
    """Multiply two matrices of rank one on ``device``, whose product is known.

    Raises:
        ArithmeticError: it came out wrong.
        RuntimeError: the device does not compute (torch).
    """
    index = torch.arange(_SIDE)
    rows, left, right, columns = (index % n + 1 for n in (7, 3, 4, 5))
    made = [torch.outer(a, b).to(device, torch.float32) for a, b in ((rows, left), (right, columns))]
    product = (made[0] @ made[1]).cpu()
    wrong = int((product != torch.outer(rows, columns) * (left * right).sum()).sum())  # NaN is unequal to all
    if wrong:
        finite = "" if bool(product.isfinite().all()) else ", some not finite"
        raise ArithmeticError(f"{wrong} of {product.numel()} numbers of a matrix product on {device} are wrong{finite}")


def try_sum(rank: int, size: int, device: str, words: int) -> float:
    """All-reduce ``words`` numbers over the ranks of the default group; returns the seconds that it took.

    Raises:
        ArithmeticError: the sum is wrong.
    """
    values = torch.full((words,), float(rank), device=device)
    begun = time.monotonic()
    dist.all_reduce(values)
    wrong = int((values != size * (size - 1) / 2).sum())  # on a GPU this waits for it
    seconds = time.monotonic() - begun
    if wrong:
        raise ArithmeticError(f"{wrong} of {words} sums over {size} ranks are wrong")
    return seconds
