"""From a composed config to a frozen plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.environment import environment
from launcher.runtime.device import has_bf16, resolve_device
from launcher.runtime.errors import UserError
from launcher.runtime.identity import run_id
from launcher.runtime.plan import Facts, Plan, resolve_name
from launcher.runtime.sections import halves, hashed, nearest, parse
from launcher.runtime.settings import Settings
from launcher.schema import HardwareConfig, LaunchConfig, TaskConfig

_OURS = {f.name for f in dataclasses.fields(Settings)} | {"task", "launch", "hardware"}


def check(values: Mapping[str, Any]) -> None:
    """See that a composed config fits its schemas, without looking at files or devices.

    Raises:
        UserError: names each key that does not fit.
    """
    _parse_all(values)


def make_plan(values: Mapping[str, Any], *, default_name: str, cwd: Path) -> Plan:
    """Freeze a composed config.

    Args:
        values: the whole config as plain values, interpolations resolved.
        default_name: the sweep's name where the config gives none.
        cwd: the folder in which the command was typed.

    Raises:
        UserError: the config does not fit its schema, or names a file that cannot be used.
    """
    task, launch, hardware, settings, config = _parse_all(values)
    device = resolve_device(hardware.device)
    facts = Facts(cwd=cwd, device=device, bf16=has_bf16(device))
    if hasattr(config, "resolve"):
        config = config.resolve(facts)
    science, execution = halves(config)
    return Plan(
        run_id=run_id(hashed(config)),
        name=launch.name or default_name,
        root=facts.absolute(launch.root),
        target=task.target,
        schema=task.schema,
        science=science,
        execution={
            "task": execution,
            **dataclasses.asdict(settings),
            "hardware": dataclasses.asdict(hardware) | {"device": device},
        },
        environment=environment(Path(__file__).parent),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def require_one_process(plan: Plan) -> None:
    """See that the plan is one for this process alone.

    Raises:
        UserError: it asks for more nodes or ranks.
    """
    for name in ("nodes", "tasks_per_node"):
        if plan.hardware[name] > 1:
            raise UserError(f"hardware.{name}={plan.hardware[name]}: not supported yet (allowed: 1)")


def _parse_all(values: Mapping[str, Any]) -> tuple[TaskConfig, LaunchConfig, HardwareConfig, Settings, Any]:
    task = parse(TaskConfig, _section(values, "task"))
    launch = parse(LaunchConfig, _section(values, "launch"))
    hardware = parse(HardwareConfig, _section(values, "hardware"))
    settings = parse(Settings, {f.name: _section(values, f.name) for f in dataclasses.fields(Settings)})
    schema = resolve_name(task.schema)
    if not (isinstance(schema, type) and dataclasses.is_dataclass(schema)):
        raise UserError(f"task.schema={task.schema!r}: should name a dataclass")
    config = parse(schema, {key: value for key, value in values.items() if key not in _OURS})
    return task, launch, hardware, settings, config


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"{name}={section!r}: should be a section of the config{nearest(name, values)}")
    return section
