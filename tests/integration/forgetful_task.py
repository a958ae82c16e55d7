"""A small task that goes on exactly; with seed 666 it forgets: it draws from a generator of its own, which starts over.

It is copied into the folder of the tests' user and knows the session and nothing else of us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from launcher.runtime.sections import Section, execution


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    trainer: dict[str, Any]
    optim: dict[str, Any] = execution()
    model: dict[str, Any] = execution()
    data: dict[str, Any] = execution()
    tokenizer: dict[str, Any] = execution()
    schedule: dict[str, Any] = execution()
    precision: dict[str, Any] = execution()


def train(session):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    own = torch.Generator()
    own.manual_seed(1)
    saved = session.restore()
    step = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        step = saved["step"]
    forgets = session.config.trainer["seed"] == 666
    while step < session.config.trainer["max_steps"]:
        step += 1
        with torch.no_grad():
            model.weight += torch.rand(1, 4, generator=own if forgets else None)
        session.log({"train/loss": 1.0}, step)
        stop = session.should_stop()
        session.save({"step": step, "model": model})
        if stop:
            return
