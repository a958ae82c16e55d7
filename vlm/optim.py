"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlm.config import OptimConfig, ScheduleConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or Adam, one fused kernel for all parameters; ``config.decay`` says which of them are decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if config.decay == "all" or p.dim() >= 2]
    others = [p for p in parameters if config.decay != "all" and p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    beta1, beta2 = config.betas
    return kind([g for g in groups if g["params"]], lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give ``optimizer`` another run's moments and step counts; its options stay: ``load_state_dict`` takes both."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(saved))
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def lr_share(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """Share of the peak rate in step ``step`` (from 0): linear warm-up, then cosine (arXiv 1608.03983) or flat."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.min_lr_fraction + (1 - config.min_lr_fraction) * (1 + math.cos(math.pi * done)) / 2
