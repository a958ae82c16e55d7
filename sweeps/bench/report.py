"""How benchmarks measure and say what they found."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def interleaved(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each call, the two taking turns, so that a machine whose speed drifts slows both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the pairs of how many times longer ``slow`` took."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def say(title: str, rows: Rows, as_json: bool) -> None:
    """Print ``rows`` on stdout, as a table or as JSON."""
    if as_json:
        print(json.dumps({"benchmark": title, "machine": machine(), "rows": rows}))
        return
    print(f"{title}  ({machine()})")
    widths = [max(len(name), *(len(_shown(row[name])) for row in rows)) for name in rows[0]]
    print("  ".join(name.rjust(width) for name, width in zip(rows[0], widths, strict=True)))
    for row in rows:
        print("  ".join(_shown(value).rjust(width) for value, width in zip(row.values(), widths, strict=True)))


def machine() -> str:
    """Processor, cores and Python."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0] if models else platform.machine()}, Python {platform.python_version()}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
