"""Jobs made without Hydra, for tests of what comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.runtime.plan import Plan
from launcher.schema import HardwareConfig, SiteConfig
from launcher.submission.jobs import Job
from launcher.submission.resources import resources_of
from launcher.submission.snapshot import Snapshot, _content_id

HARDWARE: dict[str, Any] = {
    "device": "cpu", "nodes": 1, "tasks_per_node": 1, "gpus_per_node": None, "cpus_per_task": None, "mem_gb": None,
    "time_min": None, "micro_batch": None,
}  # fmt: skip


def hardware(**values: Any) -> HardwareConfig:
    return HardwareConfig(**(HARDWARE | values))


def job(
    root: Path, number: int, queue: dict[str, Any] | None = None, *, here: bool = False, site: Any = None, **asked: Any
) -> Job:
    """Run ``number`` of the sweep ``<root>/sweep``; ``asked`` are fields of ``hardware``."""
    resources = resources_of(hardware(**asked), SiteConfig(**(site or {})), queue or {}, here=here)
    plan = Plan(
        run_id=f"{number:012x}",
        name="sweep",
        root=str(root),
        target="toy:train",
        schema="toy:Config",
        science={"number": number},
        execution={"task": {}, "hardware": {}},
    )
    return Job(plan, resources, (f"number={number}",))


def no_code(sweep: Path, cwd: Path) -> Snapshot:
    """A snapshot of nothing."""
    path = sweep / "code" / _content_id({}, {})
    return Snapshot(path.name, path, (path,), cwd, {}, {})
