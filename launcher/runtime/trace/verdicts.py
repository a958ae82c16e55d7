"""What holds a step back, in words: the figure, and which key of the config to try."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.runtime.trace.breakdown import COMPUTE, Breakdown

Config = Mapping[str, Any]
"""A run's config, ``{"data.workers": 0}``; empty where the trace stands alone."""

_FAIR = 0.05
"""Share of the time that validations, or saves, may take."""
_LEAST = {"data": 0.1, "overhead": 0.3, "sync": 0.2, "communication": 0.1, "validation": 0.1, "checkpoint": 0.1}
"""Smaller shares are not worth a word."""


@dataclass(frozen=True)
class Verdict:
    """One thing that holds the step back."""

    kind: str
    """data, overhead, sync, communication, validation or checkpoint; ``none``: nothing stands out."""
    share: float
    """Of the time, from 0 to 1."""
    words: str
    """A sentence, with what to try."""


def judge(found: Breakdown, config: Config) -> list[Verdict]:
    """What holds the step back, the worst first; a single verdict ``none`` where nothing stands out."""
    verdicts = [rule(found, config) for rule in (_data, _overhead, _sync, _communication, _validation, _checkpoint)]
    told = sorted((v for v in verdicts if v.share >= _LEAST[v.kind]), key=lambda v: -v.share)
    kinds = [v.kind for v in told]
    if "sync" in kinds and "overhead" in kinds:  # both look at the same time, and the waits explain it
        told.remove(overhead := next(v for v in told if v.kind == "overhead"))
        told.insert(told.index(next(v for v in told if v.kind == "sync")) + 1, overhead)
    return told or [_nothing(found)]


def _data(found: Breakdown, config: Config) -> Verdict:
    part = found.part("data")
    share = found.gpu.waiting.get("data", 0.0) if found.gpu else part.share
    workers = config.get("data.workers")
    more = max(4, 2 * workers) if isinstance(workers, int) else 4
    advice = _try(config, {"data.workers": more})
    return Verdict("data", share, f"data loading holds the step back {_percent(share)}{advice}")


def _overhead(found: Breakdown, config: Config) -> Verdict:
    batch = config.get("trainer.batch_size")
    more = 4 * batch if isinstance(batch, int) else "larger"
    if found.gpu:
        waiting = sum(found.gpu.waiting.get(name, 0.0) for name in COMPUTE)
        share = max(waiting - found.gpu.after_sync, 0.0)
        words = (
            f"the GPU waits {_percent(share)} of the step for Python to launch the next kernel "
            f"(a kernel takes {found.gpu.kernel_us:.0f} µs)"
        )
    else:
        share = found.overhead
        words = (
            f"the work is too small: {_percent(share)} of the step goes into calling operators, not into computing "
            f"(an operator takes {found.op_us:.0f} µs)"
        )
    return Verdict("overhead", share, words + _try(config, {"trainer.batch_size": more, "trainer.compile": True}))


def _sync(found: Breakdown, config: Config) -> Verdict:
    often = f"the host waits for a result {found.syncs:.0f} times a step"
    if found.gpu:
        share = found.gpu.after_sync
        words = f"{often}, after which the GPU has nothing to do for {_percent(share)} of the step"
    else:
        share = found.sync_share
        words = f"{often}, so close that in {_percent(share)} of the step it could never run ahead of a GPU"
    advice = "; take .item(), .tolist(), .cpu() and printing out of the step"
    if "trainer.log_every" in config or not config:
        advice += ", or do them each trainer.log_every steps"
    return Verdict("sync", share, words + advice)


def _communication(found: Breakdown, config: Config) -> Verdict:
    share, batch = found.exposed, config.get("trainer.batch_size")
    more = 2 * batch if isinstance(batch, int) else "larger"
    hidden = found.communication - share
    beside = f" (another {_percent(hidden)} is hidden behind computing)" if hidden >= 0.01 else ""
    words = f"ranks wait {_percent(share)} of the step for each other, computing nothing{beside}"
    return Verdict("communication", share, words + _try(config, {"trainer.batch_size": more}))


def _validation(found: Breakdown, config: Config) -> Verdict:
    share, cost_ms, changes = _now_and_then(found, "validation", config, ("trainer.val_every",))
    words = f"validation takes {_percent(share)} of the time ({_ms(cost_ms)} each time)"
    return Verdict("validation", share, words + _try(config, changes | {"trainer.val_batches": 1}))


def _checkpoint(found: Breakdown, config: Config) -> Verdict:
    keys = ("checkpoint.every_steps", "trainer.val_every")  # the best weights are saved after a validation
    share, cost_ms, changes = _now_and_then(found, "checkpoint", config, keys)
    if "trainer.val_every" in changes:
        changes["checkpoint.best"] = False
    if found.gpu:
        part = found.part("checkpoint")
        share *= found.gpu.waiting.get("checkpoint", 0.0) / part.share if part.share else 0.0
    words = f"the training waits {_percent(share)} of the time for checkpoints ({_ms(cost_ms)} each time)"
    return Verdict("checkpoint", share, words + _try(config, changes))


def _nothing(found: Breakdown) -> Verdict:
    computing = sum(found.part(name).share for name in ("forward", "backward", "optimizer"))
    if found.gpu:
        return Verdict("none", 0.0, f"nothing stands out: the GPU is busy {_percent(found.gpu.busy)} of the step")
    if not found.named:
        return Verdict("none", 0.0, "nothing stands out")
    return Verdict("none", 0.0, f"nothing stands out: {_percent(computing)} of the step is the model's own work")


def _now_and_then(
    found: Breakdown, name: str, config: Config, keys: tuple[str, ...]
) -> tuple[float, float, dict[str, Any]]:
    """Of what is not done in each step: its share of the time, its cost each time (ms), and how seldom would be fair.

    A window of few steps shows it too often or not at all; where the config tells how often it is done, that counts.
    """
    part = found.part(name)
    whole_ms, rest_ms = part.ms * found.n_steps, max(found.step_ms - part.ms, 1e-9)
    for key in keys:
        every = config.get(key)
        if not isinstance(every, int) or every < 1:
            continue
        if times := sum(step % every == 0 for step in found.steps):
            cost_ms = whole_ms / times
            fair = _round_up(cost_ms / (_FAIR * rest_ms))
            return cost_ms / (cost_ms + every * rest_ms), cost_ms, {key: fair} if fair > every else {}
    cost_ms = whole_ms / found.n_steps
    return part.share, cost_ms, {keys[0]: _round_up(cost_ms / (_FAIR * rest_ms))}


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 …"""
    if value <= 1:
        return 1
    power = int(10 ** math.floor(math.log10(value)))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= value)


def _try(config: Config, changes: Mapping[str, Any]) -> str:
    """``; try a=1 (now 2) or b=true (now false)``: keys that the run has, at values that they have not."""
    known: list[str] = []
    for key, value in changes.items():
        if key not in config and config:
            continue
        if key in config and config[key] == value:
            continue
        known.append(f"{key}={_shown(value)}" + (f" (now {_shown(config[key])})" if key in config else ""))
    return f"; try {' or '.join(known)}" if known else ""


def _shown(value: Any) -> str:
    """As it is typed: null, true."""
    return value if isinstance(value, str) else json.dumps(value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _ms(ms: float) -> str:
    return f"{ms / 1e3:.2f} s" if ms >= 1e3 else f"{ms:.1f} ms"
