"""A small task whose end tells every deviation on the way, and that breaks down where a test asks it to.

It is copied into the repository of the tests' user and knows the session and nothing else of us. Its state has all that
goes wrong elsewhere: dropout, Adam, a loss scaler whose gradients overflow each few steps, gradients accumulated over
micro-batches, ranks of several nodes. The samples of step N are a function of (seed, N) alone.

A test writes orders into ``<sweep>/orders/``, a file each; its content is a number. ``raise``, ``die`` (SIGKILL),
``freeze`` (SIGSTOP): what rank ``orders/rank`` (default 0) does in that step; ``die_saved``: dies once it has saved and
was asked to stop; ``hold``: stays in that step until the file is gone, deaf to all but signals' flags; ``slow_sync``:
seconds that each fsync takes from now on; ``often`` beside an order: it is not used up by being followed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.runtime.distributed import settle_buckets
from launcher.runtime.sections import Section, execution
from launcher.runtime.session import Session
from launcher.runtime.tables import StepTable

_WIDTH, _MICRO_BATCHES, _OVERFLOWS_EVERY = 32, 2, 7


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """Of the built-in task's keys it reads three; the others come along unread."""

    optim: dict[str, Any]
    trainer: dict[str, Any]
    model: dict[str, Any] = execution()
    data: dict[str, Any] = execution()
    tokenizer: dict[str, Any] = execution()
    schedule: dict[str, Any] = execution()
    precision: dict[str, Any] = execution()


class Orders:
    """What the test wants to go wrong."""

    def __init__(self, session: Session) -> None:
        self._folder = session.rundir.path.parent / "orders"
        self._rank = session.world.rank

    def number(self, name: str) -> float | None:
        """The content of an order, or None where there is none."""
        try:
            return float((self._folder / name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def mine(self, name: str, step: int) -> bool:
        """Whether this rank is to follow order ``name`` in ``step``; an order is followed once, unless ``often``."""
        if self.number(name) != step or self._rank != int(self.number("rank") or 0):
            return False
        if not (self._folder / "often").exists():
            (self._folder / name).unlink()
        return True

    def follow(self, step: int) -> None:
        """Break down as ordered."""
        if self.mine("raise", step):
            raise RuntimeError(f"ordered to break down in step {step}")
        if self.mine("die", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mine("freeze", step):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.number("hold") == step:
            (self._folder / f"holding.{self._rank}").touch()
            while self.number("hold") == step:
                time.sleep(0.02)

    def slow_down(self) -> None:
        """Make each fsync take as long as is ordered."""
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(self.number("slow_sync") or 0)
            fsync(descriptor)

        os.fsync = slow


def samples_of(seed: int, step: int, count: int) -> list[int]:
    """Numbers of the samples of a step (from 1): each number once in the whole run."""
    return [(seed * 1_000_003 + step * count + i) for i in range(count)]


def train(session: Session) -> dict[str, Any]:
    """Train as the session says."""
    config: Config = session.config
    world, orders = session.world, Orders(session)
    orders.slow_down()
    seed, count, last = config.trainer["seed"], config.trainer["batch_size"], config.trainer["max_steps"]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, _WIDTH), nn.Dropout(0.2), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optim["lr"])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    torch.manual_seed(seed + 1 + world.rank)
    wrapped: Any = DistributedDataParallel(model) if world.size > 1 else model
    saved = session.restore()
    step = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        step = saved["step"]
    table = StepTable(session.rundir.samples, ["step", "rank", "sample_id"], step) if world.is_main else None

    def backward(of_step: int) -> float:
        total = 0.0
        shares = list(_micro_batches(samples_of(seed, of_step, count), world.rank, world.size))
        for i, share in enumerate(shares):
            quiet = wrapped.no_sync() if world.size > 1 and i + 1 < len(shares) else nullcontext()
            with quiet:
                loss = _loss(wrapped, share) * world.size / count
                scaler.scale(loss).backward()
                total += float(loss.detach())
        return total

    if world.size > 2:
        settle_buckets(lambda: _ignored(backward(1)), model.parameters())
    while step < last and not session.stopping:
        step += 1
        orders.follow(step)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = backward(step)
        if step % _OVERFLOWS_EVERY == 0:
            next(model.parameters()).grad.fill_(float("inf"))  # the scaler skips this step and halves its scale
        scaler.step(optimizer)
        scaler.update()
        time.sleep(config.trainer["log_every"] / 1000)  # the pace: a run lives long enough to be hit
        if table is not None:
            table.add([step, rank, sample] for sample, rank in _owners(samples_of(seed, step, count), world.size))
        session.log({"train/loss": loss, "train/scale": scaler.get_scale()}, step)
        stop = session.should_stop()
        session.save({"step": step, "model": model, "optimizer": optimizer, "scaler": scaler})
        if stop and orders.mine("die_saved", 1):
            session.settle()
            os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _loss(model: Any, samples: list[int]) -> torch.Tensor:
    drawn = torch.Generator()
    rows = []
    for sample in samples:
        drawn.manual_seed(sample)
        rows.append(torch.randn(8, generator=drawn))
    x = torch.stack(rows) if rows else torch.zeros(1, 8)
    return (model(x).squeeze(1) - x.sum(1)).square().sum() * bool(rows)


def _micro_batches(samples: list[int], rank: int, size: int) -> Iterator[list[int]]:
    mine = [sample for sample, owner in _owners(samples, size) if owner == rank]
    for i in range(_MICRO_BATCHES):
        yield mine[i::_MICRO_BATCHES]


def _owners(samples: list[int], size: int) -> list[tuple[int, int]]:
    return [(sample, i % size) for i, sample in enumerate(samples)]


def _ignored(_: float) -> None:
    return None


def sweep_of(session: Session) -> Path:
    """The folder of the run's sweep."""
    return session.rundir.path.parent
