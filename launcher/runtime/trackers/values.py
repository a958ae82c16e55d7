"""What trackers record: numbers, texts and pictures, and what they make of everything else."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Value = float | str | np.ndarray
"""A number, a text, or a picture: ``(H, W, 3) uint8``. Names read ``<split>/<name>``, e.g. ``train/loss``."""

FINALS = ("train_loss", "val_loss", "best_val_loss", "samples_per_s", "tokens_per_s", "mfu", "peak_memory_bytes")
"""Numbers of a summary that runs are compared by, recorded as ``final/…``."""


def finals(summary: Mapping[str, Any]) -> dict[str, float]:
    """Those of ``FINALS`` that ``summary`` has, by the names that trackers record them under."""
    return {f"final/{name}": float(summary[name]) for name in FINALS if summary.get(name) is not None}


def number(value: Any) -> float | None:
    """``value`` as a plain number where it is one: numpy's scalars are, True is 1; None where it is none."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    return float(value) if isinstance(value, int | float) else None


def recordable(values: Mapping[str, Any]) -> dict[str, Value]:
    """Numbers, also NaN and infinite ones, texts, and copies of pictures; nothing else."""
    kept: dict[str, Value] = {}
    for name, value in values.items():
        if (plain := number(value)) is not None:
            kept[name] = plain
        elif isinstance(value, np.ndarray):
            kept[name] = value.copy()  # whoever logged it may draw the next one into it
        elif isinstance(value, str):
            kept[name] = str(value)
    return kept


def as_key(name: str, most: int = 250) -> str:
    """``name`` as MLflow takes it: letters, digits, ``_-. /``, no path that leads elsewhere, at most ``most`` long."""
    key = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:most]
    return (
        key if key == posixpath.normpath(key) and not key.startswith(("/", "..")) else key.replace("/", "_").strip(".")
    )
