"""The sections of the config that launching is about. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.runtime.sections import NotNegative, Positive, Section


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """What is trained: both are resolved late, so that launching knows no task."""

    target: str
    """``package.module:function``, called with the session."""
    schema: str
    """``package.module:Dataclass`` of the task's part of the config."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig(Section):
    """What one run is given."""

    device: Literal["auto", "cpu", "cuda"]
    """auto: a GPU where the planning machine has one."""
    nodes: Positive
    tasks_per_node: Positive
    """Ranks on a node."""
    gpus_per_node: NotNegative | None
    cpus_per_task: Positive | None
    mem_gb: Positive | None
    """Memory of a node."""
    time_min: Positive | None
    """Longest time, minutes."""
    micro_batch: Positive | None
    """Most samples of one forward pass on a rank; the rest of the global batch is accumulated. null: no limit."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(Section):
    """Where a run goes and under which name."""

    name: str | None
    """The sweep. null: ``<experiment or model>-<data>``, for a sweep with a hash of the names of what varies."""
    root: str
    """Folder of all sweeps; relative to the folder in which the command was typed."""

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name or self.name.startswith(".") or "/" in self.name):
            raise ValueError(f"name={self.name!r} should be one folder name: not empty, no slash, no leading dot")
