"""The training data step by step: a stateless stream of what each rank computes in each optimizer step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from launcher.runtime.world import World
from vlm.config import TrainConfig
from vlm.data.dataset import IGNORE, Batch, CaptionData
from vlm.data.order import Order, augmented, share


@dataclass(frozen=True)
class StepData:
    """One rank's share of one optimizer step."""

    micro_batches: list[Batch]
    """As many on every rank; where a rank has nothing to compute, one without targets stands in."""
    n_targets: int
    """Target tokens of the whole global batch, all ranks together: what the loss is divided by."""
    n_samples: int
    """Samples of the whole global batch."""
    epoch: int
    """From 0."""

    def pin_memory(self) -> StepData:
        """This step in page-locked memory (called by torch's DataLoader)."""
        return StepData([b.pin_memory() for b in self.micro_batches], self.n_targets, self.n_samples, self.epoch)


class StepDataset(Dataset[StepData]):
    """``dataset[step]``: a pure function of the config, the world and the step (from 0)."""

    def __init__(self, data: CaptionData, config: TrainConfig, world: World) -> None:
        self.order = Order(data.train, config.trainer.batch_size, config.trainer.seed)
        self._data = data
        self._config = config
        self._world = world

    def __getitem__(self, step: int) -> StepData:
        batch = self.order.batch(step)
        epoch = self.order.epoch_of(step)
        world = self._world
        parts = share(batch, world.rank, world.size, world.micro_batch)
        micro = [self._batch(part, epoch) if len(part) else self._weightless(batch[:1]) for part in parts]
        return StepData(micro, self._data.rows.n_targets(batch), len(batch), epoch)

    def _batch(self, rows: np.ndarray, epoch: int) -> Batch:
        data, seed = self._config.data, self._config.trainer.seed
        images = self._data.rows.decoded.images[rows]
        return self._data.rows.batch(rows, augmented(images, data.augment_shift, data.augment_flip, seed, epoch, rows))

    def _weightless(self, rows: np.ndarray) -> Batch:
        """A stand-in without targets for a rank that has nothing to compute: it still meets the others' collectives."""
        batch = self._data.rows.batch(rows)
        return replace(batch, targets=torch.full_like(batch.targets, IGNORE), rows=batch.rows[:0])


def steps_from(dataset: StepDataset, start: int, stop: int, workers: int, pin: bool) -> Iterator[StepData]:
    """Steps ``start`` to ``stop`` (from 0, end excluded), prepared by ``workers`` processes ahead of time."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # its own: the global generator's state belongs to the model
        persistent_workers=False,
    )
    return iter(loader)


def _ignore_stop_signals(worker: int) -> None:
    """Slurm signals every process of a job; the training process alone decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
