"""Which configs can begin from another run's state, and what their user should know before. No torch at import time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from launcher.runtime.errors import UserError
from vlm.config import TrainConfig

_SHAPES = ("n_embd", "n_layer", "n_blocks", "image_embed_dim", "img_size", "patch_size", "positions", "tie_weights")
"""Fields of the model's config that decide which weights there are, or how large."""


def require_fit(config: TrainConfig, parent: TrainConfig, step: int) -> None:
    """See that a run of ``config`` can begin from the state that one of ``parent`` has after ``step``.

    Raises:
        UserError: no step is left to do, or weights, tokens or the optimizer's state are others.
    """
    last = config.trainer.max_steps
    if last is not None and last <= step:
        raise UserError(
            f"trainer.max_steps={last}: is not above step {step}, from which the child would begin; nothing is left to "
            "train"
        )
    before, after = dataclasses.asdict(parent), dataclasses.asdict(config)
    keys = [("model", name) for name in (*_SHAPES, "image_tokens")] + [("tokenizer", "kind"), ("optim", "decay")]
    for section, name in keys:
        if before[section][name] != after[section][name]:
            raise UserError(
                f"{section}.{name} {before[section][name]} -> {after[section][name]}: the state of step {step} does "
                "not fit; leave it as it is, or train from scratch with python -m launcher.run"
            )


def notes(config: TrainConfig, parent: TrainConfig, step: int) -> Iterator[str]:
    """A line for each thing that goes on otherwise than in one longer run of ``parent``."""
    yield from _of_the_rate(config, parent, step)
    for key in ("batch_size", "seed"):
        old, new = getattr(parent.trainer, key), getattr(config.trainer, key)
        if old != new:
            yield f"trainer.{key} {old} -> {new}: from step {step} on the samples come in another order"
    if config.data.digest != parent.data.digest:
        yield f"data.digest: from step {step} on other data are trained on, and validated with"


def _of_the_rate(config: TrainConfig, parent: TrainConfig, step: int) -> Iterator[str]:
    from vlm.optim import lr_share  # imports torch

    if config.schedule.kind != "cosine":
        return
    key = "trainer.max_steps" if config.trainer.max_steps else "trainer.epochs"
    last, before = config.trainer.max_steps, parent.trainer.max_steps
    depends = f"the learning rate of schedule=cosine depends on {key}"
    if last is None or before is None:  # how many steps an epoch has only the data tell
        if config.trainer != parent.trainer:
            yield f"{depends}: at step {step} it jumps to where the longer curve is"
        return
    then = parent.optim.lr * lr_share(step - 1, before, parent.schedule)
    now = config.optim.lr * lr_share(step, last, config.schedule)
    if config.optim.lr * lr_share(step - 1, last, config.schedule) != then:
        yield f"{depends}: at step {step} it jumps from {then:.3g} to {now:.3g}"


def require_same_tokens(saved: dict[str, Any], tokenizer: dict[str, Any], total_steps: int) -> None:
    """What is known only once the data are read, of the state ``saved`` by the parent.

    Raises:
        UserError: its tokens mean something else here, or no step is left to do.
    """
    if saved["tokenizer"] != tokenizer:
        raise UserError(
            "the parent's state: its tokens stand for other characters than those of these data; take data with the "
            "same characters, or train parent and child with tokenizer=byte"
        )
    if total_steps <= saved["step"]:
        raise UserError(
            f"the parent's state: has {saved['step']} steps behind it, and this run ends with step {total_steps}; ask "
            "for more (trainer.epochs, trainer.max_steps)"
        )
