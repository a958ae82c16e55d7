"""A plan: everything that a run is, frozen before it starts, as one file of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import merged, parse
from launcher.runtime.settings import Settings
from launcher.runtime.task_config import identity, read_config


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The run from whose state another one, its child, begins; the child's first attempt reads it and nothing else."""

    run_id: str
    path: str
    """Its run directory, absolute."""
    step: int
    """Steps that the state has behind it."""
    checkpoint: str
    """Name of the checkpoint's folder."""

    @property
    def state(self) -> Path:
        """The checkpoint."""
        return RunDir(Path(self.path)).checkpoints / self.checkpoint


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run, decided. ``science`` is what its id was hashed from; ``execution`` is all the rest of its config."""

    run_id: str
    name: str
    """The sweep: the folder under ``root`` that the run stands in."""
    root: str
    """Absolute path of the folder of all sweeps."""
    target: str
    """``package.module:function`` that trains, called with the session."""
    schema: str | None
    """``package.module:Dataclass`` of the task's config; None: it is taken as it was composed."""
    science: dict[str, Any]
    execution: dict[str, Any]
    """``task`` (the execution half of the task's config), the sections of ``Settings``, ``hardware``."""
    code: str | None = None
    """Id of the code snapshot that the run uses; None: the code as it stands where the run was started."""
    environment: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    overrides: tuple[str, ...] = ()
    """What was typed, the chosen site included: what composes this run again (``launcher retry``, ``resume``)."""
    cwd: str = ""
    """The folder in which it was typed; empty: an older version planned it and recorded neither."""
    parent: Parent | None = None
    """From whose state it begins; part of its id. None: from scratch."""

    @property
    def rundir(self) -> RunDir:
        """Where the run leaves everything."""
        return RunDir(Path(self.root) / self.name / self.run_id)

    @property
    def hardware(self) -> dict[str, Any]:
        """The resources asked for."""
        hardware: dict[str, Any] = self.execution["hardware"]
        return hardware

    @property
    def argv(self) -> list[str] | None:
        """The program that is run; None: ``target`` is called."""
        return self.science.get("task", {}).get("argv") if self.schema is None else None

    @property
    def parent_id(self) -> str | None:
        """Id of the run from whose state it begins; None: it begins from scratch."""
        return self.parent.run_id if self.parent else None

    def config_values(self) -> dict[str, Any]:
        """The task's whole config, both halves, as nested JSON values."""
        return merged(self.science, self.execution["task"])

    def config(self) -> Any:
        """The task's config as its own dataclass (imports the schema's module), or as a ``FreeConfig``."""
        return read_config(self.schema, self.config_values())

    def settings(self) -> Settings:
        """The sections that the session obeys."""
        return parse(Settings, {f.name: self.execution[f.name] for f in fields(Settings) if f.name in self.execution})

    def labels(self) -> dict[str, str]:
        """What trackers are told beside the config: whose run it is and which code it was planned with."""
        known = {"target": self.target, "git_sha": self.environment.get("git_sha"), "code": self.code}
        return {name: str(value) for name, value in known.items() if value}

    def same_science(self, other: Plan) -> bool:
        """Whether both would learn the same: what is hashed is equal, whatever was added to the schema since."""
        if self.parent_id != other.parent_id:
            return False
        if (self.target, self.schema, self.science) == (other.target, other.schema, other.science):
            return True
        try:
            theirs = other.identity()
        except UserError:  # the schema does not read it any more
            return False
        return self.schema == other.schema and self.identity() == theirs

    def identity(self) -> dict[str, Any]:
        """What ``run_id`` is hashed from."""
        return identity(self.config(), self.target)

    def to_json(self) -> dict[str, Any]:
        """A mapping of JSON values that ``from_json`` reads."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parent = values.pop("parent")
        return values if parent is None else values | {"parent": asdict(parent)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Plan:
        """Read what ``to_json`` made."""
        plan = Plan(**values)
        parent: Any = plan.parent
        return replace(plan, overrides=tuple(plan.overrides), parent=parent and Parent(**parent))

    @staticmethod
    def read(rundir: RunDir) -> Plan:
        """The plan of a run.

        Raises:
            UserError: ``rundir`` is no run directory.
        """
        values = rundir.read(rundir.plan)
        if values is None:
            raise UserError(f"{rundir.path}: no run directory (it has no {rundir.plan.name})")
        try:
            return Plan.from_json(values)
        except TypeError:
            raise UserError(f"{rundir.plan}: is damaged, or another version's") from None
