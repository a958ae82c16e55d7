"""The search space: what a study may choose for each key. Optuna is told of it, and is not imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from launcher.runtime.errors import UserError
from launcher.runtime.sections import Positive, Section, nearest, parse

_KINDS = ("log", "linear", "int", "choices")
_Whole: TypeAlias = int  # a field below is called int


@dataclass(frozen=True, kw_only=True)
class _Said(Section):
    log: list[float] | bool | None = None
    linear: list[float] | None = None
    int: list[_Whole] | None = None
    choices: list[str | bool | _Whole | float | None] | None = None
    step: Positive | None = None


@dataclass(frozen=True)
class Axis:
    """One searched key: choices, or a range of numbers, both ends included."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether orders of magnitude are equally likely."""
    whole: bool = False
    """Whether it takes whole numbers alone."""
    step: int = 1
    """Between whole numbers."""

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that tell whether the schema takes the axis: every choice, or both ends."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        """As it is compared with another study's, and shown."""
        if self.choices:
            return {"choices": list(self.choices)}
        if not self.whole:
            return {"log" if self.log else "linear": list(self.probes)}
        more: dict[str, Any] = {"log": True} if self.log else {}
        return {"int": list(self.probes)} | more | ({"step": self.step} if self.step > 1 else {})


def read_space(said: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes that the ``search`` section of a sweep's file means.

    Raises:
        UserError: all that cannot be meant, in one line.
    """
    if not said:
        raise UserError("search: is empty; name a key and its values, e.g. optim.lr: {log: [1e-4, 1e-1]}")
    axes, problems = [], []
    for key, values in said.items():
        try:
            axes.append(_axis(key, f"search.{key}", values))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return tuple(axes)


def _axis(key: str, where: str, said: Any) -> Axis:
    if not isinstance(said, Mapping):
        raise UserError(f"{where}={said!r}: should be a mapping with one of {', '.join(_KINDS)}")
    strange = [name for name in said if name not in {f.name for f in fields(_Said)}]
    if strange:
        raise UserError(f"{where}: unknown word '{strange[0]}'{nearest(str(strange[0]), _KINDS)} (allowed: {_KINDS})")
    values = parse(_Said, said, where)
    is_log = values.log is True
    kinds = [kind for kind in _KINDS if getattr(values, kind) not in (None, True, False)]
    if len(kinds) != 1:
        raise UserError(f"{where}={dict(said)}: should have one of {', '.join(_KINDS)}")
    kind = kinds[0]
    if kind != "int" and (values.log in (True, False) or values.step is not None):
        raise UserError(f"{where}={dict(said)}: 'log: true' and 'step' go with int alone")
    if kind == "choices":
        return Axis(key, _choices(where, values.choices or []))
    bounds = getattr(values, kind)
    where = f"{where}.{kind}={bounds}"
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)):
        raise UserError(f"{where}: should be two numbers, the lowest and the highest")
    low, high = bounds
    if low >= high:
        raise UserError(f"{where}: the first should be below the second")
    if (kind == "log" or is_log) and low <= 0:
        raise UserError(f"{where}: both should be above 0")
    if is_log and values.step is not None:
        raise UserError(f"{where}: has 'log: true' and 'step'; use one of them")
    return Axis(key, (), low, high, kind == "log" or is_log, kind == "int", values.step or 1)


def _choices(where: str, values: list[Any]) -> tuple[Any, ...]:
    if not values:
        raise UserError(f"{where}.choices=[]: has no value")
    if any(values.index(value) != i for i, value in enumerate(values)):
        raise UserError(f"{where}.choices={values}: has a value twice")
    if not all(math.isfinite(value) for value in values if isinstance(value, float)):
        raise UserError(f"{where}.choices={values}: should be finite")
    return tuple(values)
