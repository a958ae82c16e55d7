"""The non-finite guard: every step's loss is looked at, without waiting for the GPU to compute it."""

from __future__ import annotations

from collections import deque

import torch
from torch import nn

from launcher.runtime.errors import TrainingFailed

_ADVICE = "lower optim.lr, lengthen schedule.warmup_steps or set trainer.grad_clip"


class LossWatch:
    """Looks at losses as they arrive: at once on a CPU, a step or two later on a GPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._pending: deque[tuple[int, torch.Tensor, torch.cuda.Event]] = deque()

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Watch the scalar ``loss`` of ``step``.

        Raises:
            TrainingFailed: an earlier loss, or on a CPU this one, is not finite.
        """
        if not self._on_gpu:
            _check(step, loss)
            return
        copy = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((step, copy, event))
        while self._pending and self._pending[0][2].query():
            _check(*self._pending.popleft()[:2])

    def settle(self) -> None:
        """Look at all losses so far; on a GPU this waits for the newest.

        Raises:
            TrainingFailed: one is not finite.
        """
        if self._pending:
            self._pending[-1][2].synchronize()
        while self._pending:
            _check(*self._pending.popleft()[:2])


def require_finite(model: nn.Module) -> None:
    """See that the last step left weights that can be used: no later loss would tell.

    Raises:
        TrainingFailed: a weight is not finite.
    """
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise TrainingFailed(f"the last step made weights that are not finite; {_ADVICE}")


def _check(step: int, loss: torch.Tensor) -> None:
    if not bool(torch.isfinite(loss)):
        raise TrainingFailed(
            f"step {step}: the loss is {float(loss)}; {_ADVICE}, or look at the samples of that step "
            "(trainer.log_samples=true)"
        )
