"""Ranks that act as one: the process group, and the collectives that a training loop and a session need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from launcher.runtime.errors import UserError
from launcher.runtime.world import World

T = TypeVar("T")


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


def visible_gpus() -> int:
    """How many GPUs this process can use."""
    return torch.cuda.device_count()


@contextmanager
def process_group(world: World, store: Any = None) -> Iterator[None]:
    """A process group over all ranks for the time of the block: NCCL on GPUs, gloo on CPUs; none in a world of one.

    A block that raises lets go of its peers at once, so that they fail too instead of waiting for this rank.

    Args:
        store: the ``torch.distributed.Store`` in which they meet; None: ``env://`` (MASTER_ADDR, MASTER_PORT).
    """
    if world.size == 1:
        yield
        return
    on_gpu = world.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(world.device)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=world.rank, world_size=world.size)
    try:
        yield
        dist.barrier()  # leave together: whoever leaves early closes connections that others may still read
    except BaseException:
        _abort()
        raise
    dist.destroy_process_group()


def _abort() -> None:
    """Close all connections without waiting for what is under way: to destroy a group would wait for its peers."""
    with suppress(Exception):  # what led here is told, not this
        dist.distributed_c10d._abort_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum ``values`` elementwise over all ranks, in place; in a world of one they stay as they are."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def start_sum_over_ranks(values: torch.Tensor) -> Any:
    """Begin to sum ``values`` in place: after ``wait()`` of what this returns they are. None in a world of one."""
    return dist.all_reduce(values, async_op=True) if dist.is_initialized() else None


class Agreement:
    """The largest of some numbers over all ranks, at no cost to a training step: asked in one step, told in the next.

    The words travel on a small gloo group of their own while the step is computed, so they meet no other collective and
    wait for no GPU. Every rank makes one, in the same place, and asks it equally often.
    """

    def __init__(self, first: Sequence[float]) -> None:
        """``first`` is what the first question is answered with among several ranks: no rank has said anything yet."""
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._words = torch.tensor(first, dtype=torch.float64)
        self._under_way: dist.Work | None = None

    def largest(self, words: Sequence[float]) -> list[float]:
        """The largest of each of ``words`` over the ranks, as of the call before this one; in a world of one as of now.

        Every rank gives as many, and gets the same.
        """
        if self._group is None:
            return list(words)
        answer = self._settled()
        self._words = torch.tensor(words, dtype=torch.float64)
        self._under_way = dist.all_reduce(self._words, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def close(self) -> None:
        """Wait for the last words; every rank has asked equally often, so they come."""
        self._settled()

    def _settled(self) -> list[float]:
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None
        words: list[float] = self._words.tolist()
        return words


class Channel:
    """Messages between the ranks on a gloo group of their own, so that a thread may talk beside the training.

    Every rank makes one, in the same place, and calls the same methods in the same order.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def from_main(self, value: T) -> T:
        """Rank 0's ``value``, on every rank."""
        return from_main_rank(value, self._group)

    def from_all(self, value: T) -> list[T]:
        """``value`` of every rank, by rank."""
        return from_all_ranks(value, self._group)


def from_all_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """``value`` of every rank, by rank; each rank calls it and gets the same list."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def from_main_rank(value: T, group: dist.ProcessGroup | None = None) -> T:
    """Rank 0's ``value``; each rank calls it."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def settle_buckets(
    one_pass: Callable[[], None],
    parameters: Iterable[torch.nn.Parameter],
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Throw-away passes before the first step of a start or a resume, so that both go on to the same bits.

    ``DistributedDataParallel`` begins with buckets of its own making and cuts them anew, in the order in which
    gradients came, after the first backward pass (torch docs, "Distributed Data Parallel", Internal Design). The first
    step of a process therefore averages other pieces than any later one, and with three or more ranks a ring adds the
    ranks' numbers in an order that depends on the place in a piece: a resumed run would differ from the one that went
    on by the last bit. Two ranks have one order only. Call it after the state has been restored, on every rank, where
    gloo or NCCL averages the gradients of more than two ranks; the passes leave no trace: gradients are dropped, the
    generators of Python, numpy and torch (the CPU's and that of the parameters' GPU) are put back.

    Args:
        one_pass: a forward and a backward pass through the wrapped model, with gradients synchronised; no optimizer
            step and nothing else that is remembered.
        parameters: those of the wrapped model.
        should_stop: asked after each pass, as often on every rank.

    Returns:
        Whether to go on: False where ``should_stop`` said yes.
    """
    weights = list(parameters)
    for _ in range(2):  # the first shows the order, the second works with the buckets that come of it
        with _generators_put_back(weights):
            one_pass()
        for weight in weights:
            weight.grad = None
        if should_stop():
            return False
    return True


@contextmanager
def _generators_put_back(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """What is drawn in the block is drawn again behind it."""
    python, of_numpy = random.getstate(), np.random.get_state()
    gpus = {weight.get_device() for weight in weights if weight.is_cuda}
    with torch.random.fork_rng(devices=sorted(gpus)):
        yield
    random.setstate(python)
    np.random.set_state(of_numpy)
