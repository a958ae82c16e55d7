"""A task's config: read by its own schema, or taken as it was composed where the task has none.

Either way it is split into the two halves of a plan, *science* and *execution*; a run's id is made of science.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.sections import flat, halves, hashed, nearest, parse

_TASK = "task"
"""The section of a config without a schema that says what is run; no other key of a task may be called so."""
_LISTS = ("execution", "paths")
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a task's config may need to know to settle itself when it is planned (its method ``resolve(facts)``)."""

    cwd: Path
    """The folder in which the command was typed; relative paths are read against it."""
    device: str
    """``cpu`` or ``cuda``: what the run will compute on."""
    bf16: bool
    """Whether that device multiplies bf16 in hardware."""

    def absolute(self, path: str) -> str:
        """``path`` as an absolute one; ``~`` is a home directory.

        Raises:
            UserError: there is no such home.
        """
        try:
            return str(self.cwd / Path(path).expanduser())
        except RuntimeError as error:
            raise UserError(f"{path}: {error}") from None


class FreeConfig(Mapping[str, Any]):
    """The config of a task without a schema: nested plain values, as ``config.optim.lr`` or ``config["optim"]["lr"]``.

    Its section ``task`` has ``target`` (and ``argv``), and the lists ``execution`` and ``paths`` of dotted keys.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return FreeConfig(value) if isinstance(value, Mapping) else value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy and pickle ask for what is not there yet
            raise AttributeError(key)
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"the config has no key '{key}'{nearest(key, self._values)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"FreeConfig({self._values!r})"

    def plain(self) -> dict[str, Any]:
        """The same as nested dicts: JSON values."""
        return copy.deepcopy(self._values)

    def resolve(self, facts: Facts) -> FreeConfig:
        """``task.paths`` made absolute.

        Raises:
            UserError: ``task.paths`` or ``task.execution`` names a key that is not there, a path is no text, there is
                a key or a value that JSON has not.
        """
        _require_json(self._values)
        self._require_keys("execution", self._listed("execution"))
        values = self.plain()
        for key in self._require_keys("paths", self._listed("paths")):
            said = _at(values, key)
            if said is not None and not isinstance(said, str):
                raise UserError(f"task.paths: {key}={said!r} should be a path")
            if said is not None:
                _put(values, key, facts.absolute(said))
        return FreeConfig(values)

    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(science, execution), which ``merged`` joins again; ``task.execution`` lists what is execution."""
        science = self.plain()
        lists = {name: science[_TASK].pop(name) for name in _LISTS if name in science[_TASK]}
        execution: dict[str, Any] = {_TASK: lists}
        for key in sorted(set(self._listed("execution"))):  # a section before what stands in it
            if _at(science, key, missing=_MISSING) is _MISSING:
                continue
            _put(execution, key, _take(science, key))
        return science, execution

    def _listed(self, name: str) -> Sequence[str]:
        listed: Sequence[str] = self._values[_TASK].get(name) or ()
        return listed

    def _require_keys(self, name: str, keys: Sequence[str]) -> Sequence[str]:
        known = [key for key in self._values if key != _TASK] + [key for key in flat(self._values) if "." in key]
        for key in keys:
            if _at(self._values, key, missing=_MISSING) is _MISSING or key.partition(".")[0] == _TASK:
                raise UserError(f"task.{name}: the config has no key '{key}'{nearest(key, known)}")
        return keys


def read_config(schema: str | None, values: Mapping[str, Any]) -> Any:
    """The config of a task: a dataclass that ``schema`` names, or, where that is None, a ``FreeConfig``.

    Raises:
        UserError: names each key that does not fit, or there is no such schema.
    """
    if schema is None:
        return FreeConfig(values)
    try:
        named = resolve_name(schema)
    except UserError as error:
        raise UserError(f"task.schema={error}") from None
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"task.schema={schema!r}: cannot be imported: {type(error).__name__}: {error}") from None
    if not (isinstance(named, type) and is_dataclass(named)):
        raise UserError(f"task.schema={schema!r}: should name a dataclass")
    return parse(named, values)


def split(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(science, execution) of a config that ``read_config`` read."""
    return config.halves() if isinstance(config, FreeConfig) else halves(config)


def identity(config: Any, target: str) -> dict[str, Any]:
    """What the id of a run of ``target`` with ``config`` is hashed from.

    One config may be of two functions. A schema names the one that it was made for (``TARGET``), which is left out.
    """
    if isinstance(config, FreeConfig):
        return config.halves()[0]
    return hashed(config) | ({} if getattr(config, "TARGET", None) == target else {_TASK: {"target": target}})


def resolve_name(name: str) -> Any:
    """The object that ``package.module:name`` names.

    Raises:
        UserError: the text has another form, or nothing of that name is there.
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UserError(f"{name!r}: should be package.module:name")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise UserError(f"{name!r}: there is no module {error.name}") from None
        raise
    if not hasattr(imported, attribute):
        raise UserError(f"{name!r}: module {module} has no {attribute}")
    return getattr(imported, attribute)


def _at(values: Mapping[str, Any], key: str, missing: Any = None) -> Any:
    """The value at the dotted ``key``; ``missing`` where there is none."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return missing
        values = values[part]
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _take(values: dict[str, Any], key: str) -> Any:
    *sections, name = key.split(".")
    for section in sections:
        values = values[section]
    return values.pop(name)


def _require_json(value: Any, key: str = "") -> None:
    """See that a plan, which is JSON, will hold the very same."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                raise UserError(f"{path}: is no text, and keys are; put quotes around it")
            _require_json(inner, path)
    elif isinstance(value, list):
        for inner in value:
            _require_json(inner, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: is no number that JSON has; write null, or a text")
