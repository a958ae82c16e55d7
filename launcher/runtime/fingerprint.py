"""What bit-exactness depends on besides the code: versions, machine, threads."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from launcher.runtime.world import World


def fingerprint(world: World) -> dict[str, Any]:
    """Of this process, as plain values."""
    on_gpu = world.device.startswith("cuda")
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(world.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": world.size,
        "nodes": world.nodes,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as ``torch 2.12 -> 2.13``."""
    return [f"{name} {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]
