"""What this machine can compute with, found without importing torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

# Instructions that multiply bf16 in hardware; without one of them bf16 on a CPU is slower than fp32.
_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_AMPERE = 8.0
"""First CUDA compute capability with bf16 tensor cores."""


def resolve_device(wanted: str) -> str:
    """``cpu`` or ``cuda`` for a wanted ``auto``, ``cpu`` or ``cuda``: auto takes a GPU where there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if _compute_capabilities() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether ``device`` (``cpu`` or ``cuda``) of this machine multiplies bf16 in hardware."""
    if device == "cuda":
        found = _compute_capabilities()
        return bool(found) and min(found) >= _AMPERE
    return cpu_has_bf16(_read(Path("/proc/cpuinfo")))


def cpu_has_bf16(cpuinfo: str) -> bool:
    """Whether the text of ``/proc/cpuinfo`` lists a bf16 instruction (x86 ``flags``, Arm ``Features``)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not set(_CPU_BF16).isdisjoint(value.split())
    return False


def _compute_capabilities() -> list[float]:
    """Compute capability of each GPU, e.g. 9.0; empty where there is no driver or no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return [float(line) for line in answer.stdout.split()] if answer.returncode == 0 else []


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
