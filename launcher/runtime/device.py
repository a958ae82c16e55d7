"""What this machine can compute with; torch is imported only where there may be a GPU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

# Instructions that multiply bf16 in hardware; without one of them bf16 on a CPU is slower than fp32.
_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_AMPERE = (8, 0)
"""First CUDA compute capability with bf16 tensor cores."""


def resolve_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """``cpu`` or ``cuda`` for a wanted ``auto``, ``cpu`` or ``cuda``: auto takes a GPU that torch can use here."""
    if wanted != "auto":
        return wanted
    return "cuda" if _usable_gpus() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether ``device`` (``cpu`` or ``cuda``) of this machine multiplies bf16 in hardware."""
    if device == "cuda":
        gpus = _usable_gpus()
        return bool(gpus) and min(gpus) >= _AMPERE
    return cpu_has_bf16(_cpuinfo())


def cpu_has_bf16(cpuinfo: str) -> bool:
    """Whether the text of ``/proc/cpuinfo`` lists a bf16 instruction (x86 ``flags``, Arm ``Features``)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not set(_CPU_BF16).isdisjoint(value.split())
    return False


def visible_gpus(env: Mapping[str, str]) -> list[str]:
    """The GPUs that a process with ``env`` sees, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    if (said := env.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in said.split(",") if name and not name.startswith("-")]
    return [str(index) for index in range(len(_usable_gpus()))]


def named_gpus(env: Mapping[str, str]) -> list[str]:
    """As ``visible_gpus``, by asking the driver alone: a process that has used CUDA could not be forked any more."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return visible_gpus(env)
    if shutil.which("nvidia-smi", path=env.get("PATH")) is None:
        return []
    words = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()


def _usable_gpus() -> list[tuple[int, int]]:
    """Compute capability of each GPU that torch can use, e.g. (9, 0). Torch is asked only where there is a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    import torch  # a second and a half, and only here: planning must stay quick on a login node

    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


@cache
def _cpuinfo() -> str:
    """Read once: with hundreds of cores the kernel takes milliseconds for it, and a sweep asks for each of its runs."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
