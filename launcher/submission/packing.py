"""``launch.pack``: how many jobs share how many members, and which members may be shared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from launcher.runtime.plan import Plan
from launcher.runtime.sections import merged
from launcher.schema import HardwareConfig, LaunchConfig


@dataclass(frozen=True)
class Packing:
    """Members that wait in a queue for workers."""

    per_job: int
    """Members for each job: what says how many jobs there are, not which of them runs what."""
    beside: int
    """Members at a time in a job."""

    @staticmethod
    def of(launch: LaunchConfig) -> Packing | None:
        """What ``launch`` asks for; None: a job for each member."""
        return Packing(launch.pack, launch.beside) if launch.pack else None

    def jobs(self, members: int, most: int | None = None) -> int:
        """How many jobs ``members`` are shared by, at most ``most``."""
        wanted = max(1, -(-members // max(self.per_job, self.beside)))
        return wanted if most is None else min(wanted, most)

    def takes(self, hardware: HardwareConfig) -> bool:
        """Whether a run on ``hardware`` can be packed: one with several ranks has a job of its own."""
        return hardware.nodes * hardware.tasks_per_node == 1


def without_extras(plan: Plan) -> Plan:
    """``plan`` without what takes longer than a short run: pictures (``launcher curves``), and the peak measured.

    A peak that the config gives costs nothing, and stays.
    """
    left_out: dict[str, dict[str, Any]] = {"tracker": {"curves": False}}
    if plan.execution.get("throughput", {}).get("peak_tflops") == "measure":
        left_out["throughput"] = {"peak_tflops": None}
    return replace(plan, execution=merged(plan.execution, left_out))
