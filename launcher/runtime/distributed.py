"""Ranks that act as one: the process group, and the two collectives that a training loop needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from launcher.runtime.errors import UserError
from launcher.runtime.world import World


def require_device(device: str) -> None:
    """See that ``device`` (``cpu``, ``cuda`` or ``cuda:<index>``) is here.

    Raises:
        UserError: there is no such device, or this torch cannot use it.
    """
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r}: should be cpu or cuda") from None
    if kind.type not in ("cpu", "cuda"):
        raise UserError(f"device {device!r}: should be cpu or cuda")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        reason = "torch was built without CUDA" if torch.version.cuda is None else "no such GPU is visible"
        raise UserError(f"device {device!r}: {reason}; use cpu (hardware=cpu, --device cpu)")


@contextmanager
def process_group(world: World) -> Iterator[None]:
    """A process group over all ranks for the time of the block: NCCL on GPUs, gloo on CPUs; none in a world of one.

    The rendezvous is torch's ``env://`` (MASTER_ADDR, MASTER_PORT).
    """
    if world.size == 1:
        yield
        return
    on_gpu = world.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(world.device)
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=world.rank, world_size=world.size)
    try:
        yield
        dist.barrier()  # leave together: whoever leaves early closes connections that others may still read
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum ``values`` elementwise over all ranks, in place; in a world of one they stay as they are."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: str) -> bool:
    """Whether ``flag`` is true on at least one rank; every rank gets the same answer."""
    if not dist.is_initialized():
        return flag
    word = torch.tensor([int(flag)], device=device)
    dist.all_reduce(word, op=dist.ReduceOp.MAX)
    return bool(word.item())


def from_all_ranks(value: Any) -> list[Any]:
    """``value`` of every rank, by rank; each rank calls it and gets the same list."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
