"""What the launcher calls: ``train(session)``."""

from __future__ import annotations

from typing import Any

import torch

from launcher.runtime.errors import Stopped
from launcher.runtime.session import Session
from vlm.config import TrainConfig
from vlm.data.dataset import open_data
from vlm.trainer import Trainer
from vlm.validation import exact_match, write_captions

_SCORED = 256
"""Most validation pictures captioned for the summary; ``python -m vlm evaluate`` takes them all."""


def train(session: Session) -> dict[str, Any]:
    """Train the vision-language model; returns what the summary says beyond the session's own numbers.

    Raises:
        Stopped: asked to stop while the data were built, before a checkpoint was looked for.
        UserError: ``data.stage`` names a variable that is not set here, or the data cannot be used.
    """
    config: TrainConfig = session.config
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    stage = None if config.data.stage is None else session.world.folder("data.stage", config.data.stage)
    trainer = Trainer(session, open_data(config, poll=lambda: _poll(session), stage=stage))
    trainer.run()
    if session.stopping or not session.world.is_main:
        return {}
    extra: dict[str, Any] = {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "flops_per_sample": trainer.flops_per_sample,
        "peak_tflops": None if trainer.peak_flops is None else trainer.peak_flops / 1e12,
    }
    rows, data = trainer.data.val[:_SCORED], trainer.data
    if len(rows):
        pairs = write_captions(trainer.model, data.rows, rows, config.trainer.val_batch_size, session.world.device)
        extra["val_exact_match"] = exact_match(pairs)
    return extra


def _poll(session: Session) -> None:
    if session.should_stop():  # before ``restore`` a question to this process alone
        raise Stopped
