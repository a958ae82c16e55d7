"""What one job is given: ``hardware``, then the site, then ``hydra.launcher.*``, the later the stronger."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.identity import canonical_json
from launcher.schema import HardwareConfig, SiteConfig

DEFAULT_TIME_MIN = 60
"""Longest time of a job where nothing says it; hydra-submitit-launcher's."""
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
"""What sbatch calls an option; submitit writes it into the script as it is."""
_FROM_HARDWARE = {
    "nodes": "nodes", "tasks_per_node": "tasks_per_node", "gpus_per_node": "gpus_per_node",
    "cpus_per_task": "cpus_per_task", "mem_gb": "mem_gb", "timeout_min": "time_min",
}  # fmt: skip
_FROM_SITE = ("partition", "account", "qos", "constraint")
_GRES_GPUS = re.compile(r"\bgpu(?::(?!\d+\b(?!\.))[^:,]+)?(?::(\d+))?\b")
"""``gpu``, ``gpu:2`` or ``gpu:a100:2`` among generic resources."""
_UNTYPED_GRES = re.compile(r"\bgpu(?=,|$|:\d+(?:,|$))")
_COUNTS_OF_GPUS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_NOT_OF_A_JOB = ("_target_", "submitit_folder", "max_num_timeout")
_NAMED_OTHERWISE = {
    "nodes": "use hydra.launcher.nodes", "ntasks-per-node": "use hydra.launcher.tasks_per_node",
    "ntasks": "use hydra.launcher.tasks_per_node", "cpus-per-task": "use hydra.launcher.cpus_per_task",
    "time": "use hydra.launcher.timeout_min", "job-name": "use hydra.launcher.name",
    "output": "use hydra.launcher.submitit_folder", "error": "use hydra.launcher.submitit_folder",
    "array": "runs are gathered into arrays", "wait": "use launch.wait=true", "test-only": "use launch.dry_run=true",
    "parsable": "the launcher reads what sbatch says", "wrap": "the command is the launcher's",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """The resource shape of a job. Jobs with equal ones go into one array."""

    hardware: HardwareConfig
    """With ``device`` settled and everything that the site and ``hydra.launcher`` say put in."""
    site: SiteConfig
    queue: dict[str, Any]
    """Parameters of submitit by its own names, without those that are None."""

    def __str__(self) -> str:
        """What a user would want to see where Slurm refuses it."""
        shown = [*_FROM_HARDWARE, *_FROM_SITE, "gres", "gpus_per_task", "additional_parameters"]
        return ", ".join(f"{key}={self.queue[key]}" for key in shown if self.queue.get(key))

    @property
    def key(self) -> str:
        """Equal for equal shapes."""
        shape = {"queue": self.queue, "site": dataclasses.asdict(self.site), "hardware": self.hardware.device}
        return canonical_json(shape)

    def without_nodes(self, nodes: Sequence[str]) -> Resources:
        """The same on other nodes than ``nodes``, and than those that the user excludes already."""
        other = dict(self.queue.get("additional_parameters") or {})
        said = [self.queue.get("exclude"), other.pop("exclude", None), *nodes]
        excluded = {"exclude": ",".join(str(one) for one in said if one), "additional_parameters": other}
        return dataclasses.replace(self, queue=self.queue | excluded)

    @property
    def gpus(self) -> int:
        """GPUs of one job, as far as numbers say."""
        per_task = self.queue.get("gpus_per_task")
        if per_task:
            return int(str(per_task).rpartition(":")[2]) * self.hardware.nodes * self.hardware.tasks_per_node
        from_gres = sum(int(n or 1) for n in _GRES_GPUS.findall(str(self.queue.get("gres", ""))))
        return (self.hardware.gpus_per_node or from_gres) * self.hardware.nodes

    @property
    def asks_for_gpus(self) -> bool:
        """Whether any word of it is about GPUs."""
        return _asks_for_gpus(self.queue)

    @property
    def minutes(self) -> int:
        """Longest time of one job that Slurm runs."""
        return int(self.queue["timeout_min"])


def resources_of(
    hardware: HardwareConfig, site: SiteConfig, queue: Mapping[str, Any], *, here: bool = False
) -> Resources:
    """Join what the three say.

    Args:
        queue: ``hydra.launcher.*`` with the keys of hydra-submitit-launcher; None: not said there.
        here: the job runs on this machine, where it has as much time as it takes unless somebody says otherwise.

    Raises:
        UserError: an option of ``additional_parameters`` that sbatch cannot have or that is not the user's to set; a
            value that would break out of its line; a GPU device without GPUs.
    """
    said = {key: value for key, value in queue.items() if value is not None and key not in _NOT_OF_A_JOB}
    from_hardware = {key: getattr(hardware, field) for key, field in _FROM_HARDWARE.items()}
    from_site = {key: getattr(site, key) for key in _FROM_SITE}
    joined = {key: v for key, v in (from_hardware | from_site).items() if v is not None} | said
    if not here:
        joined.setdefault("timeout_min", DEFAULT_TIME_MIN)
    _check(joined)
    settled: dict[str, Any] = {field: joined.get(key) for key, field in _FROM_HARDWARE.items()}
    asks_for_gpus = _asks_for_gpus(joined)
    device = hardware.device
    if device == "auto":
        device = "cuda" if asks_for_gpus else "cpu"
    elif device == "cuda" and not asks_for_gpus:
        raise UserError("hardware.device=cuda: no GPU is asked for; set hardware.gpus_per_node")
    if site.gpu_type is not None and not here:
        joined = _with_type(joined, site.gpu_type)
    return Resources(dataclasses.replace(hardware, **settled, device=device), site, joined)


def _asks_for_gpus(queue: Mapping[str, Any]) -> bool:
    other = queue.get("additional_parameters") or {}
    named = any(str(key).startswith("gpus") for key in other) or "gpu" in str(other.get("gres", ""))
    return bool(
        queue.get("gpus_per_node") or queue.get("gpus_per_task") or "gpu" in str(queue.get("gres", "")) or named
    )


def _with_type(queue: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """``queue`` with GPUs of ``kind`` wherever it asks for some by number alone; a type that it names stays."""
    typed = {}
    for key, value in queue.items():
        typed[key] = value
        if key == "additional_parameters":
            typed[key] = _with_type(value, kind)
        elif key.replace("_", "-") in _COUNTS_OF_GPUS and str(value).isdecimal() and int(value):
            typed[key] = f"{kind}:{value}"
        elif key == "gres":
            typed[key] = _UNTYPED_GRES.sub(f"gpu:{kind}", str(value))
    return typed


def _check(queue: Mapping[str, Any]) -> None:
    for key in ("nodes", "tasks_per_node", "timeout_min", "array_parallelism", "cpus_per_task", "mem_gb"):
        if key in queue and int(queue[key]) < 1:
            raise UserError(f"hydra.launcher.{key}={queue[key]}: should be at least 1")
    for key, value in queue.items():
        if isinstance(value, str):
            _require_one_line(f"hydra.launcher.{key}", value)
    for line in queue.get("setup") or ():
        _require_one_line("hydra.launcher.setup", str(line))
    for key, value in (queue.get("additional_parameters") or {}).items():
        option = str(key).replace("_", "-")
        where = f"hydra.launcher.additional_parameters.{key}"
        if not _OPTION.fullmatch(option):
            raise UserError(f"{where!r}: is no option of sbatch (allowed: letters, digits and '-', e.g. mail-user)")
        # Shorter ones too: sbatch takes --arr for --array.
        if named := next((name for name in _NAMED_OTHERWISE if name.startswith(option)), None):
            raise UserError(f"{where}: cannot be set here; {_NAMED_OTHERWISE[named]}")
        _require_one_line(where, str(value))


def _require_one_line(name: str, value: str) -> None:
    if not value.isprintable():
        raise UserError(f"{name}={value!r}: holds characters that cannot be printed")
