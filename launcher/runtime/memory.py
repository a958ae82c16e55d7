"""How much memory a process has needed at most, and which of several ranks needed most."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")
"""proc(5): 5 has VmHWM begin anew."""


def forget_peak(device: str) -> None:
    """Let ``peak_bytes`` count from now on: a process may have trained another run before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # a kernel that does not let it
            _FORGET.write_text("5")


def peak_bytes(device: str) -> int:
    """The most that this process has held since ``forget_peak``.

    On a GPU what torch's allocator had handed out (``torch.cuda.max_memory_allocated``), on a CPU the largest resident
    set (proc(5), ``VmHWM``; a kernel that does not tell it is asked by getrusage(2), whose figure may be that of the
    program which started this one).
    """
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    for line in _STATUS.read_text().splitlines() if _STATUS.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def largest(peaks: Sequence[float], hosts: Sequence[str]) -> tuple[float, str]:
    """The largest of ``peaks``, bytes by rank, and whose it is: ``rank 3 on n2``. ``hosts`` has the node of each."""
    most = max(peaks)
    rank = list(peaks).index(most)
    return most, f"rank {rank} on {hosts[rank]}"
