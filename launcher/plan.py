"""From a composed config to a frozen plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.environment import environment
from launcher.runtime.device import has_bf16, resolve_device
from launcher.runtime.errors import UserError
from launcher.runtime.identity import run_id
from launcher.runtime.plan import Parent, Plan
from launcher.runtime.recipe import Recipe
from launcher.runtime.sections import nearest, parse
from launcher.runtime.settings import ProfilerSettings, RequeueSettings, Settings
from launcher.runtime.task_config import Facts, identity, read_config, split
from launcher.schema import HardwareConfig, LaunchConfig, SiteConfig, TaskConfig
from launcher.submission.resources import Resources, resources_of
from launcher.tracking import require_installed, settled

_OURS = {f.name for f in dataclasses.fields(Settings)} | {"task", "launch", "hardware", "site"}


@dataclass(frozen=True)
class Sections:
    """A whole config, read by the schemas."""

    task: TaskConfig
    launch: LaunchConfig
    hardware: HardwareConfig
    site: SiteConfig
    settings: Settings
    config: Any
    """The task's own."""


def read_sections(values: Mapping[str, Any]) -> Sections:
    """Read a composed config by its schemas, without looking at files or devices.

    Raises:
        UserError: names each key that does not fit.
    """
    task = parse(TaskConfig, _section(values, "task"), "task")
    launch = parse(LaunchConfig, _section(values, "launch"), "launch")
    hardware = parse(HardwareConfig, _section(values, "hardware"), "hardware")
    site = parse(SiteConfig, _section(values, "site"), "site")
    settings = parse(Settings, _settings(values))
    if site.python is None and site.container.image is None:  # another Python's packages are not this one's
        require_installed(settings.tracker)
    config = read_config(task.schema, _task_values(values, task))
    return Sections(task, launch, hardware, site, settings, config)


def make_plan(
    values: Mapping[str, Any],
    *,
    default_name: str,
    cwd: Path,
    overrides: Sequence[str] = (),
    parent: Parent | None = None,
) -> Plan:
    """Freeze a composed config for this process alone.

    Args:
        values: the whole config as plain values, interpolations resolved.
        default_name: the sweep's name where the config gives none.
        cwd: the folder in which the command was typed.
        overrides: what was typed, recorded so that the run can be composed again.
        parent: from whose state the run begins.

    Raises:
        UserError: the config does not fit its schema, names a file that cannot be used, or asks for more than one rank.
    """
    sections = read_sections(values)
    for name in ("nodes", "tasks_per_node"):
        if (count := getattr(sections.hardware, name)) > 1:
            raise UserError(
                f"hardware.{name}={count}: this process is one rank; several need hardware=local_2, or "
                "hydra/launcher=submitit_local or submitit_slurm"
            )
    hardware = dataclasses.replace(sections.hardware, device=resolve_device(sections.hardware.device))
    facts = Facts(cwd=cwd, device=hardware.device, bf16=has_bf16(hardware.device))
    return _freeze(sections, hardware, facts, default_name, None, overrides, parent)


def make_queued_plan(
    values: Mapping[str, Any],
    queue: Mapping[str, Any],
    *,
    default_name: str,
    cwd: Path,
    code: str | None,
    here: bool,
    overrides: Sequence[str] = (),
    parent: Parent | None = None,
) -> tuple[Plan, Resources]:
    """Freeze a composed config for a job of its own.

    Args:
        queue: ``hydra.launcher.*``.
        code: id of the snapshot that the job imports from.
        here: the job runs on this machine; else on a node of a cluster, which is believed to have what is asked for.
        overrides, parent: as for ``make_plan``.

    Raises:
        UserError: as ``make_plan``, or resources that cannot be asked for.
    """
    sections = read_sections(values)
    if (timeouts := queue.get("max_num_timeout")) is not None:
        limits = dataclasses.asdict(sections.settings.requeue) | {"max_timeouts": timeouts}
        requeue = parse(RequeueSettings, limits, "requeue")
        sections = dataclasses.replace(sections, settings=dataclasses.replace(sections.settings, requeue=requeue))
    hardware = sections.hardware
    if here:
        hardware = dataclasses.replace(hardware, device=resolve_device(hardware.device))
        if hardware.device == "cuda" and not hardware.gpus_per_node and not queue.get("gpus_per_node"):
            hardware = dataclasses.replace(hardware, gpus_per_node=hardware.tasks_per_node)
    resources = resources_of(hardware, sections.site, queue, here=here)
    device = resources.hardware.device
    facts = Facts(cwd=cwd, device=device, bf16=_multiplies_bf16(sections.site, device, here))
    return _freeze(sections, resources.hardware, facts, default_name, code, overrides, parent), resources


def recipe_of(plan: Plan, values: Mapping[str, Any], *, here: bool) -> Recipe:
    """What ``plan``, frozen from the config ``values`` for a job of its own, and others like it are made of.

    Args:
        here: as for ``make_queued_plan``.
    """
    site = parse(SiteConfig, _section(values, "site"), "site")
    task = parse(TaskConfig, _section(values, "task"), "task")
    return Recipe(plan, _task_values(values, task), _multiplies_bf16(site, plan.hardware["device"], here))


def _multiplies_bf16(site: SiteConfig, device: str, here: bool) -> bool:
    return site.bf16 if device == "cuda" and not here else has_bf16(device)


def _task_values(values: Mapping[str, Any], task: TaskConfig) -> dict[str, Any]:
    """The task's own part of a whole config; one without a schema says in it what is run."""
    own = {key: value for key, value in values.items() if key not in _OURS}
    return own if task.schema is not None else {"task": task.of_free_config(), **own}


def _freeze(
    sections: Sections,
    hardware: HardwareConfig,
    facts: Facts,
    default_name: str,
    code: str | None,
    overrides: Sequence[str],
    parent: Parent | None,
) -> Plan:
    _require_ranks(sections.settings.profiler, hardware.nodes * hardware.tasks_per_node)
    config = sections.config
    if hasattr(type(config), "resolve"):
        config = config.resolve(facts)
    science, execution = split(config)
    tracker = settled(sections.settings.tracker, facts.absolute)
    settings = dataclasses.replace(sections.settings, tracker=tracker)
    return Plan(
        run_id=run_id(identity(config, sections.task.target), parent.run_id if parent else None),
        name=sections.launch.name or default_name,
        root=facts.absolute(sections.launch.root),
        target=sections.task.target,
        schema=sections.task.schema,
        science=science,
        execution={
            "task": execution,
            **_recorded(settings),
            "hardware": dataclasses.asdict(hardware) | {"interface": sections.site.interface},
        },
        code=code,
        environment=environment(facts.cwd),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        overrides=tuple(overrides),
        cwd=str(facts.cwd),
        parent=parent,
    )


def _recorded(settings: Settings) -> dict[str, Any]:
    """The sections of ``settings``; that of a drill only where it is one."""
    values = dataclasses.asdict(settings)
    return values if settings.drill.stop_after is not None else {k: v for k, v in values.items() if k != "drill"}


def _require_ranks(profiler: ProfilerSettings, size: int) -> None:
    if profiler.kind == "steps" and (missing := [rank for rank in profiler.ranks if rank >= size]):
        there = "rank 0 is the only one" if size == 1 else f"there are ranks 0 to {size - 1}"
        raise UserError(f"profiler.ranks={profiler.ranks}: no rank {missing[0]} in a run of {size}; {there}")


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that the session obeys; a config tree of one's own may leave out those that have defaults."""
    needed = {f.name for f in dataclasses.fields(Settings) if f.default is dataclasses.MISSING}
    names = [f.name for f in dataclasses.fields(Settings) if f.name in needed or f.name in values]
    return {name: _section(values, name) for name in names}


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"{name}={section!r}: should be a section of the config{nearest(name, values)}")
    return section
