"""Copying tensors between pieces of memory as fast as memory takes it: in large pieces, on several threads.

A process with ``launcher.runtime.world.STREAMING`` in its environment copies past the processor's caches, which takes
two thirds of the time: what is overwritten need not be fetched first, and what the training left in the caches stays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

_PIECE = 8 << 20
"""Bytes that one thread copies in one go at most, so that one huge tensor is shared out too."""
_MOST_THREADS = 4
"""More do not make memory faster."""

Piece = tuple[int, int, int]
"""To, from (addresses), bytes."""


class Copier:
    """Copies with as many threads as this process computes with, at most four."""

    def __init__(self) -> None:
        self._threads = min(_MOST_THREADS, torch.get_num_threads())
        self._pool = ThreadPoolExecutor(self._threads - 1, "copy") if self._threads > 1 else None

    @torch.no_grad()
    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
        """Copy each of ``sources`` to the contiguous tensor of the same kind in ``targets``.

        Those on a GPU are copied in the order of its stream, and may arrive later.
        """
        pieces: list[Piece] = []
        for target, source in zip(targets, sources, strict=True):
            if source.is_cpu and source.is_contiguous() and not (source.is_conj() or source.is_neg()):
                to, begin, size = target.data_ptr(), source.data_ptr(), source.nbytes
                if size <= _PIECE:
                    pieces.append((to, begin, size))
                else:
                    pieces += [(to + i, begin + i, min(_PIECE, size - i)) for i in range(0, size, _PIECE)]
            else:
                target.copy_(source, non_blocking=True)
        shares = _shared_out(pieces, self._threads)
        others = [self._pool.submit(_move, share) for share in shares[1:]] if self._pool else []
        _move(shares[0])
        for other in others:
            other.result()


def _shared_out(pieces: Sequence[Piece], n: int) -> list[list[Piece]]:
    """``pieces`` in order, cut into ``n`` shares of about as many bytes."""
    shares: list[list[Piece]] = [[] for _ in range(n)]
    total, done = sum(size for _, _, size in pieces), 0
    for piece in pieces:
        shares[min(n - 1, n * done // max(total, 1))].append(piece)
        done += piece[2]
    return shares


def _move(pieces: Sequence[Piece]) -> None:
    for to, begin, size in pieces:
        ctypes.memmove(to, begin, size)  # lets go of the interpreter's lock
