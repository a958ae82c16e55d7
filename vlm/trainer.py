"""The training loop: a client of the session and nothing more."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from launcher.runtime.distributed import settle_buckets, start_sum_over_ranks
from launcher.runtime.errors import UserError
from launcher.runtime.session import Session
from launcher.runtime.shared_average import share_memory
from launcher.runtime.spans import span
from launcher.runtime.tables import StepTable
from launcher.runtime.throughput import Throughput
from vlm.child import require_same_tokens
from vlm.config import TrainConfig
from vlm.data.dataset import CaptionData, data_file
from vlm.data.loader import StepData, StepDataset, steps_from
from vlm.data.order import share
from vlm.flops import sample_flops
from vlm.model.vlm import VisionLanguageModel, load_weights, token_loss_sum
from vlm.optim import load_optimizer, lr_share, make_optimizer
from vlm.precision import Precision
from vlm.timing import StepTimer
from vlm.validation import contact_sheet, mean_loss, write_captions
from vlm.watch import LossWatch, require_finite

_NEWER = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
_CONSTANT_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEWER else "broadcast_buffers": False}
"""The model's buffers are constants, equal on all ranks: to send them before each forward pass would be a wait."""


class Trainer:
    """One run's model, optimizer and data, and the loop over them."""

    def __init__(self, session: Session, data: CaptionData) -> None:
        self.session = session
        self.config: TrainConfig = session.config
        self.world = session.world
        self.data = data
        self._tokenizer = data.tokenizer.to_json()  # once: a state is offered after each step
        torch.manual_seed(self.config.trainer.seed)
        self.model = VisionLanguageModel(self.config.model, data.tokenizer.vocab_size, self.config.data.normalize)
        self.model.to(self.world.device)
        self.optimizer = make_optimizer(self.model, self.config.optim)
        self.precision = Precision(self.config.precision, self.world.device)
        self.steps = StepDataset(data, self.config, self.world)
        self.total_steps = (
            self.config.trainer.max_steps or (self.config.trainer.epochs or 0) * self.steps.order.steps_per_epoch
        )
        self.timer = StepTimer(self.world.device)
        self.watch = LossWatch(self.world.device)
        self.peak_flops: float | None = None
        """FLOP/s that this rank's device does at most, once the loop has begun and where that is known."""
        self._owed: dict[str, Any] | None = None
        """What is to be logged of the last step once its validation is done; None: nothing is owed."""
        self._order_is_fixed = True  # in which the ranks' gradients are added up
        self._forward = self._wrapped()
        torch.manual_seed(self.config.trainer.seed + 1 + self.world.rank)  # each rank drops other units

    def run(self) -> None:
        """Train from the last checkpoint, or from the start, to the last step or until the session says stop."""
        self.session.expect(self.total_steps)
        step = self._restore()
        with closing(_SampleLog(self, step)) as samples:
            if not self._warmed_up(step) or not self._caught_up(step):
                return
            rates = self._throughput()
            rates.begin()
            for data in self._stream(step):
                loss = self.train_step(step, data)
                samples.add(step)
                step += 1
                rates.add(samples=data.n_samples, tokens=data.n_targets)
                self.watch.add(step, loss)
                values: dict[str, Any] = {}
                if self._due(step, self.config.trainer.log_every):
                    values |= self._training_values(step, data, loss)
                    values |= rates.told()  # after the loss: on a GPU that waits until the step is computed
                if self.session.should_stop():
                    self.watch.settle()
                self._owed = values if self._due(step, self.config.trainer.val_every) else None
                with rates.pause():  # what is logged, validated or saved is no training time
                    self._end_step(step, values)
                if values:
                    rates.begin()
                if self.session.stopping:
                    return
        self.watch.settle()
        require_finite(self.model)

    @cached_property
    def flops_per_sample(self) -> float:
        """Of a sample's forward and backward pass; the mean over the rows to train on."""
        positions = self.data.rows.lengths(self.data.train).astype(np.int64) + 1
        return float(sample_flops(self.config.model, self.data.tokenizer.vocab_size, positions).mean())

    def _throughput(self) -> Throughput:
        """Counts ``samples`` and ``tokens``: the target tokens that a loss is divided by, a text position each."""
        self.peak_flops = self.session.peak_flops(self.precision.dtype)
        return Throughput(flops_per_sample=self.flops_per_sample, peak_flops=self.peak_flops, ranks=self.world.size)

    def train_step(self, step: int, data: StepData) -> torch.Tensor:
        """One optimizer step (``step`` counts from 0); returns the global batch's loss, nats per target token."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optim.lr * lr_share(step, self.total_steps, self.config.schedule)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        summed = None
        for i, micro in enumerate(data.micro_batches):
            last = i + 1 == len(data.micro_batches)
            with nullcontext() if last else self._no_sync():
                loss = self._loss_of(micro, data.n_targets)
                total += loss.detach()
                if last:
                    summed = start_sum_over_ranks(total)  # travels while the backward pass is computed
                with self.timer.phase("backward"):
                    # DDP averages gradients over ranks; the loss of the global batch is their sum.
                    self.precision.scaler.scale(loss * self.world.size).backward()
        with self.timer.phase("optimizer"):
            self._update()
        self.timer.step_done()
        if summed is not None:
            with span("communication"):
                summed.wait()
        return total

    def _loss_of(self, micro: Any, n_targets: int) -> torch.Tensor:
        """This micro-batch's part of the loss, a scalar with its graph."""
        batch = micro.to(self.world.device)
        with self.timer.phase("forward"):
            with self.precision.autocast():
                logits = self._forward(batch.images, batch.inputs)
            return token_loss_sum(logits, batch.targets) / n_targets

    def _update(self) -> None:
        scaler, clip = self.precision.scaler, self.config.trainer.grad_clip
        if clip:
            scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        scaler.step(self.optimizer)
        scaler.update()

    def _wrapped(self) -> Any:
        """The model as a step calls it: over all ranks, compiled if asked for; its weights are ``self.model``'s."""
        model: Any = self.model
        if self.world.size > 1:
            model = DistributedDataParallel(model, gradient_as_bucket_view=True, **_CONSTANT_BUFFERS)
            self._order_is_fixed = share_memory(model, self.world) or self.world.size == 2
        if self.config.trainer.compile:
            model = torch.compile(model)
        return model

    def _no_sync(self) -> AbstractContextManager[Any]:
        """Gradients of all but the last micro-batch stay on their rank."""
        return self._forward.no_sync() if self.world.size > 1 else nullcontext()

    def _stream(self, start: int) -> Iterator[StepData]:
        pin = self.world.device.startswith("cuda")
        stream = steps_from(self.steps, start, self.total_steps, self.config.data.workers, pin)
        while True:
            with self.timer.phase("data"):
                data = next(stream, None)
            if data is None:
                return
            yield data

    def _due(self, step: int, every: int | None) -> bool:
        return step == self.total_steps or (every is not None and step % every == 0)

    def _training_values(self, step: int, data: StepData, loss: torch.Tensor) -> dict[str, Any]:
        times = {f"time/{phase}": seconds for phase, seconds in self.timer.means().items()}
        lr = self.optimizer.param_groups[0]["lr"]
        epoch = step / self.steps.order.steps_per_epoch
        values = {"train/loss": float(loss), "train/lr": lr, "train/epoch": epoch, **times}
        if self.precision.scaler.is_enabled():
            values["train/loss_scale"] = self.precision.scaler.get_scale()
        return values

    def _end_step(self, step: int, values: dict[str, Any]) -> None:
        """Validate where that is due, log, and offer the state.

        Once a stop is known validation is not begun, or given up, and the step is not logged: both remain owed, and the
        run that goes on begins with them. So each step stands in the logs once.
        """
        metric = None
        if self._owed is not None and not self.session.stopping:
            with span("validation"):
                metric = self._validate(values)
        if self._owed is None:
            self.session.log(values, step)
        self.session.save(self._state(step), metric)

    def _validate(self, values: dict[str, Any]) -> float | None:
        """Add what validation finds to ``values``; returns its loss, None where there are no rows or it was stopped."""
        trainer = self.config.trainer
        loss = None
        self.watch.settle()
        if len(self.data.val):
            chosen = self.data.val[: trainer.val_batches and trainer.val_batches * trainer.val_batch_size]
            args = (trainer.val_batch_size, self.world, self.precision)
            loss = mean_loss(self.model, self.data.rows, chosen, *args, self.session.should_stop)
            if loss is None:
                return None
            values["val/loss"] = loss
        if trainer.captions and self.world.is_main:
            values["samples/captions"] = self._caption_sheet(trainer.captions)
        self._owed = None
        return loss

    def _caught_up(self, step: int) -> bool:
        """Do what was owed of ``step`` when the run was stopped; returns whether to go on."""
        if self._owed is not None:
            self._end_step(step, self._owed)
        return not self.session.stopping

    def _warmed_up(self, step: int) -> bool:
        """See that the first step here adds gradients in the order of any later one; returns whether to go on."""
        if self._order_is_fixed or step == self.total_steps:
            return True
        data = self.steps[step]

        def one_pass() -> None:
            self.model.train()
            self._loss_of(data.micro_batches[-1], data.n_targets).backward()

        go_on = settle_buckets(one_pass, self.model.parameters(), self.session.should_stop)
        self.timer.means()  # forgets the time of these passes
        return go_on

    def _caption_sheet(self, count: int) -> np.ndarray:
        rows = (self.data.val if len(self.data.val) else self.data.train)[:count]
        pairs = write_captions(self.model, self.data.rows, rows, count, self.world.device)
        return contact_sheet(self.data.rows.decoded.images[rows], pairs)

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "owed": self._owed,
            "data": self.data.fingerprint,
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.precision.scaler,
            "tokenizer": self._tokenizer,
        }

    def _restore(self) -> int:
        """Steps done so far."""
        saved = self.session.restore()
        if saved is None:
            return 0
        if self.session.inherited:
            return self._begin_from(saved)
        if saved["data"] != self.data.fingerprint:
            raise UserError(
                f"{data_file(self.config.data)}: the data have changed since the checkpoint of step {saved['step']} "
                f"(fingerprint {self.data.fingerprint}, was {saved['data']}); put back what was there (data.path), "
                "or start anew under another launch.name"
            )
        load_weights(self.model, saved["model"], str(self.session.rundir.checkpoints))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.precision.scaler.load_state_dict(saved["scaler"])
        self._owed = saved["owed"]
        return int(saved["step"])

    def _begin_from(self, saved: dict[str, Any]) -> int:
        """Take over another run's state; what this run's config says of the optimizer and the loss scale holds."""
        require_same_tokens(saved, self._tokenizer, self.total_steps)
        load_weights(self.model, saved["model"], "the parent's state")
        load_optimizer(self.optimizer, saved["optimizer"])
        self.precision.take_over(saved["scaler"])
        return int(saved["step"])


class _SampleLog:
    """``samples.csv``: which rank trained on which row in which step; written by rank 0, which can compute it all."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self._trainer = trainer
        wanted = trainer.config.trainer.log_samples and trainer.world.is_main
        path = trainer.session.rundir.samples
        self._table = StepTable(path, ["step", "rank", "sample_id"], step) if wanted else None

    def add(self, step: int) -> None:
        """Add the samples of ``step`` (from 0; the file counts from 1)."""
        if self._table is None:
            return
        world, batch = self._trainer.world, self._trainer.steps.order.batch(step)
        for rank in range(world.size):
            mine = share(batch, rank, world.size, None)[0]
            self._table.add([step + 1, rank, int(row)] for row in mine)

    def close(self) -> None:
        """No more samples."""
        if self._table is not None:
            self._table.close()
