"""Mixed precision behind one object: autocast for the forward pass, loss scaling where fp16 needs it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from launcher.runtime.errors import UserError
from vlm.config import PrecisionConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Arithmetic of one run on one device; weights, gradients and optimizer state stay fp32."""

    def __init__(self, config: PrecisionConfig, device: str) -> None:
        self.dtype = _DTYPES.get(config.kind, torch.float32)
        """Of the matrix products of a forward and a backward pass."""
        self._device_type = device.partition(":")[0]
        on_gpu = self._device_type == "cuda"
        if config.kind == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError("precision=bf16: planned for a GPU that has bf16, and this one has not")
        self.scaler = torch.amp.GradScaler(
            self._device_type,
            init_scale=config.init_scale,
            growth_interval=config.growth_interval,
            enabled=config.kind == "fp16",
        )

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Go on with another run's loss scale, if both have one; when it grows is this run's own say."""
        if saved and self.scaler.is_enabled():
            self.scaler.load_state_dict({**saved, "growth_interval": self.scaler.get_growth_interval()})

    def autocast(self) -> AbstractContextManager[Any]:
        """Around the forward pass."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self._device_type, self.dtype)
