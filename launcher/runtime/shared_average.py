"""Gradients of the ranks on one machine, averaged through memory that they share instead of through sockets.

Gloo sends what it adds up through the loopback interface; for 13 million parameters on two ranks that takes three times
as long as this. Each rank owns a share of every piece: it reads the others' values of it, adds them in the order of the
ranks, and all read the sum (reduce-scatter and all-gather, as in Rabenseifner, "Optimization of Collective Reduction
Operations", 2004). The order is fixed, so all ranks get the same bits, however DDP cuts its buckets.
"""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import select
import time

import numpy as np
import torch
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from launcher.runtime.distributed import from_all_ranks
from launcher.runtime.spans import span
from launcher.runtime.world import World

_PIECE_BYTES = 8 << 20
"""What is added up at a time; small enough for the cache of a processor, large enough that meeting costs nothing."""
_LINE_BYTES = 64
"""A rank's counter has a cache line of its own."""
_SPIN_S = 0.002
_NAP_S = 0.0002
_TIMEOUT_S = 1800.0
"""Longest wait for another rank that lives; torch's own default for collectives."""


def share_memory(model: DistributedDataParallel, world: World) -> bool:
    """Let ``model`` average its gradients through shared memory where all ranks are on one machine and compute on CPUs.

    Every rank calls it. Returns whether it does; if not, gloo or NCCL goes on doing so.
    """
    # On x86 a rank's stores are seen in the order in which they were made (Intel SDM 3A, 9.2.2): no fences are needed.
    if world.size == 1 or world.nodes > 1 or world.device != "cpu" or platform.machine() != "x86_64":
        return False
    memory = _shared_by_all(world)
    if memory is None:
        return False
    # A lambda: torch looks at the annotations of a hook and takes only the class itself, not its name in quotes.
    model.register_comm_hook(_Average(world, *memory), lambda average, bucket: average.take(bucket))
    return True


def _shared_by_all(world: World) -> tuple[mmap.mmap, list[int]] | None:
    """Memory that every rank sees, and a descriptor of each peer that tells when it ends; None if one cannot see it."""
    size = _LINE_BYTES * world.size + _PIECE_BYTES * (world.size + 1)
    nonce = secrets.token_bytes(16)
    own = -1
    if world.is_main:
        own = os.memfd_create("gradients", os.MFD_CLOEXEC)
        os.truncate(own, size)
        os.pwrite(own, nonce, size - len(nonce))
    places = from_all_ranks((os.getpid(), own, nonce))
    pid, descriptor, expected = places[0]
    opened: mmap.mmap | None = None
    peers: list[int] = []
    try:
        shared = own if world.is_main else os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        opened = mmap.mmap(shared, size)
        os.close(shared) if not world.is_main else None
        peers = [os.pidfd_open(place[0]) for rank, place in enumerate(places) if rank != world.rank]
        seen = opened[size - len(expected) :] == expected
    except (OSError, ValueError):  # ranks in containers of their own, or a kernel without it
        seen = False
    everywhere = all(from_all_ranks(seen))
    if own >= 0:
        os.close(own)
    return (opened, peers) if everywhere and opened is not None else None


class _Average:
    """What DDP's communication hook does (torch docs, "DDP Communication Hooks"), for all buckets at once."""

    def __init__(self, world: World, memory: mmap.mmap, peers: list[int]) -> None:
        self._rank, self._size = world.rank, world.size
        self._memory = memory
        counters = np.frombuffer(memory, dtype=np.int64, count=_LINE_BYTES // 8 * world.size)
        self._counters = counters[:: _LINE_BYTES // 8]
        self._round = 0
        self._ends = select.poll()
        for peer in peers:
            self._ends.register(peer, select.POLLIN)
        self._waiting: list[tuple[torch.Tensor, torch.futures.Future[torch.Tensor]]] = []

    def take(self, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Keep ``bucket`` until the last one is there: the ranks then wait for each other once, not for each bucket."""
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self._waiting.append((bucket.buffer(), future))
        if bucket.is_last():
            waiting, self._waiting = self._waiting, []
            for buffer, done in waiting:
                with span("communication"):
                    self.average(buffer)
                done.set_result(buffer)
        return future

    def average(self, values: torch.Tensor) -> None:
        """Replace ``values`` (N,) by their mean over the ranks, in place; every rank calls it with as many."""
        for piece in values.split(_PIECE_BYTES // values.element_size()):
            shares = piece.tensor_split(self._size)
            slots = [self._slot(rank, piece).tensor_split(self._size) for rank in range(self._size + 1)]
            for rank, share in enumerate(shares):
                if rank != self._rank:
                    slots[self._rank][rank].copy_(share)
            self._meet()
            parts = [shares[rank] if rank == self._rank else slots[rank][self._rank] for rank in range(self._size)]
            total = torch.add(parts[0], parts[1], out=slots[self._size][self._rank])
            for part in parts[2:]:
                total.add_(part)
            total.div_(self._size)
            self._meet()
            piece.copy_(self._slot(self._size, piece))

    def _slot(self, index: int, piece: torch.Tensor) -> torch.Tensor:
        """Where rank ``index`` lays down the others' shares; behind the ranks' slots, where all lay down the mean."""
        offset = _LINE_BYTES * self._size + _PIECE_BYTES * index
        return torch.frombuffer(self._memory, dtype=piece.dtype, count=piece.numel(), offset=offset)

    def _meet(self) -> None:
        """Wait until every rank has come here.

        Raises:
            RuntimeError: one has ended, or does not come.
        """
        self._round += 1
        self._counters[self._rank] = self._round
        begun = time.monotonic()
        while int(self._counters.min()) < self._round:
            waited = time.monotonic() - begun
            if waited < _SPIN_S:
                os.sched_yield()
                continue
            if self._ends.poll(0) and int(self._counters.min()) < self._round:
                raise RuntimeError("Connection closed by peer: a rank that shares memory with this one has ended")
            if waited > _TIMEOUT_S:
                raise RuntimeError(f"Timed out waiting {_TIMEOUT_S:g} s for a rank that shares memory with this one")
            time.sleep(_NAP_S)
