"""The task with a bottleneck put in on purpose: ``task.target=tests.vlm.planted:slow_data``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from launcher.runtime import shared_average
from launcher.runtime.checkpoint import writing
from launcher.runtime.session import Session
from vlm import task, trainer
from vlm.data.loader import StepDataset


@contextmanager
def _slowed(owner: Any, name: str, seconds: float) -> Iterator[None]:
    real = getattr(owner, name)

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, slow)
        yield


def slow_data(session: Session) -> dict[str, Any]:
    """Each batch takes 50 ms to prepare."""
    with _slowed(StepDataset, "__getitem__", 0.05):
        return task.train(session)


def sync_each_layer(session: Session) -> dict[str, Any]:
    """Each layer's output, and each gradient of it, is looked at."""

    def look(value: torch.Tensor) -> None:
        value.sum().item()

    def look_twice(layer: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            look(output)
            if output.requires_grad:
                output.register_hook(look)

    hook = nn.modules.module.register_module_forward_hook(look_twice)
    try:
        return task.train(session)
    finally:
        hook.remove()


def slow_ranks(session: Session) -> dict[str, Any]:
    """Each meeting of the ranks that share memory takes 30 ms longer."""
    with _slowed(shared_average._Average, "_meet", 0.03):
        return task.train(session)


def slow_gloo(session: Session) -> dict[str, Any]:
    """Gradients go through gloo, and rank 1 comes 60 ms late to each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "share_memory", lambda model, world: False)
        if session.world.is_main:
            return task.train(session)
        with _slowed(trainer.Trainer, "_loss_of", 0.06):
            return task.train(session)


def slow_disk(session: Session) -> dict[str, Any]:
    """Each file of a checkpoint takes 50 ms to write."""
    with _slowed(writing, "write_file", 0.05):
        return task.train(session)


def stopped_once(session: Session) -> dict[str, Any]:
    """The first attempt is asked to stop in its seventh step."""
    real = trainer.Trainer.train_step

    def step(self: trainer.Trainer, number: int, data: Any) -> torch.Tensor:
        if number == 6 and session.step == 6 and not list(session.rundir.list_checkpoints("step")):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", step)
        return task.train(session)
