"""A plan's recipe: what other plans are made of that differ from it in plain values, where nothing is composed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.identity import run_id
from launcher.runtime.plan import Plan
from launcher.runtime.sections import flat, nearest, parse
from launcher.runtime.settings import Settings
from launcher.runtime.task_config import Facts, identity, read_config, split


@dataclass(frozen=True)
class Recipe:
    """A frozen plan, and what its config was before it was settled."""

    plan: Plan
    values: Mapping[str, Any]
    """The task's config as it was composed: before paths, digests and the precision were filled in."""
    bf16: bool
    """As in ``Facts``."""

    @property
    def settings(self) -> dict[str, Any]:
        """The sections that the session obeys, as the plan has them."""
        return {f.name: self.plan.execution[f.name] for f in fields(Settings) if f.name in self.plan.execution}

    def keys(self) -> dict[str, Any]:
        """Every plain key that may be changed, and its value."""
        return flat({**self.values, **self.settings})

    def plan_with(self, changes: Mapping[str, Any], words: Sequence[str] = ()) -> Plan:
        """The plan that composing with ``changes`` on top would have been frozen into.

        Args:
            changes: plain values by dotted key.
            words: the same as overrides, recorded behind those that they replace.

        Raises:
            UserError: a key is not there, or the values do not fit the schema.
        """
        values, settings = _copy(self.values), _copy(self.settings)
        for key, value in changes.items():
            _set(settings if key.partition(".")[0] in settings else values, key, value, self.keys())
        config = read_config(self.plan.schema, values)
        if hasattr(type(config), "resolve"):
            config = config.resolve(Facts(cwd=Path(self.plan.cwd), device=self.plan.hardware["device"], bf16=self.bf16))
        science, execution = split(config)
        settled = {name: section for name, section in asdict(parse(Settings, settings)).items() if name in settings}
        kept = [word for word in self.plan.overrides if word.lstrip("+~").partition("=")[0] not in changes]
        return replace(
            self.plan,
            run_id=run_id(identity(config, self.plan.target), self.plan.parent_id),
            science=science,
            execution={**self.plan.execution, **settled, "task": execution},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            overrides=(*kept, *words),
        )

    def to_json(self) -> dict[str, Any]:
        """A mapping of JSON values that ``from_json`` reads."""
        return {"plan": self.plan.to_json(), "values": dict(self.values), "bf16": self.bf16}

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Recipe:
        """Read what ``to_json`` made."""
        return Recipe(Plan.from_json(said["plan"]), said["values"], said["bf16"])


def _set(values: dict[str, Any], key: str, value: Any, known: Mapping[str, Any]) -> None:
    if key not in known:
        raise UserError(f"unknown key '{key}'{nearest(key, known)}")
    *sections, name = key.split(".")
    for section in sections:
        values = values[section]
    values[name] = value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
