"""The points of a named sweep: lists, ranges and log ranges of values, axes of them, and each with each.

Values are written as Hydra's grammar of overrides reads them back, so that a member of a named sweep is composed, and
can be composed again, like one that was typed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from itertools import product as each_with_each
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.sections import Positive, Section, nearest, parse

MOST = 100_000
"""Most values of an axis, and most members of a sweep: more is a slip of the pen."""
_DIGITS = 6
"""Significant digits of a value between the ends: short to read, and a finer range keeps the runs of a coarser one."""
_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w./@:-]*", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_NO_TEXT = ("null", "true", "false", "nan", "inf")
"""Words that Hydra reads as values of another type."""

Point = dict[str, str]
"""Keys, without ``+`` and the like, and for each the override that gives it a value."""


@dataclass(frozen=True)
class Axis:
    """What varies together."""

    where: str
    """What errors call it, e.g. ``vary.grid.optim.lr``."""
    points: tuple[Point, ...]

    @property
    def keys(self) -> set[str]:
        """Every key that a point of it holds."""
        return {key for point in self.points for key in point}

    def without(self, keys: Collection[str]) -> Axis:
        """This axis, ``keys`` dropped out of its points; points that are equal then are one."""
        if not self.keys & set(keys):
            return self
        unlike: dict[frozenset[tuple[str, str]], Point] = {}
        for point in self.points:
            kept = {key: word for key, word in point.items() if key not in keys}
            unlike.setdefault(frozenset(kept.items()), kept)
        return replace(self, points=tuple(unlike.values()))


@dataclass(frozen=True, kw_only=True)
class _Log(Section):
    log: list[float]
    count: Positive


@dataclass(frozen=True, kw_only=True)
class _Linear(Section):
    linear: list[float]
    count: Positive


@dataclass(frozen=True, kw_only=True)
class _Range(Section):
    range: list[int]


_KINDS = {"log": _Log, "linear": _Linear, "range": _Range}


def values_of(where: str, said: Any) -> list[Any]:
    """The values that ``said`` means: a list, ``{log: [from, to], count: n}``, ``{linear: …}`` or ``{range: …}``.

    Raises:
        UserError: it is none of them, or has no value.
    """
    if isinstance(said, list):
        if not said:
            raise UserError(f"{where}=[]: has no value")
        return said
    if not isinstance(said, Mapping) or not said:
        raise UserError(f"{where}={said!r}: should be a list, or a mapping with one of {', '.join(_KINDS)}")
    kinds = [kind for kind in _KINDS if kind in said]
    if len(kinds) != 1:
        hint = nearest(str(next(iter(said))), _KINDS) if not kinds else ""
        raise UserError(f"{where}={dict(said)}: should have one of {', '.join(_KINDS)}{hint}")
    kind = kinds[0]
    parse(_KINDS[kind], said, where)
    bounds: list[float] = said[kind]
    where = f"{where}.{kind}={bounds}"
    if kind == "range":
        return _range(where, [int(bound) for bound in bounds])
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)):
        raise UserError(f"{where}: should be two numbers, the first and the last")
    count = int(said["count"])
    if count > MOST:
        raise UserError(f"{where}: count={count} should be at most {MOST}")
    if kind == "log" and min(bounds) <= 0:
        raise UserError(f"{where}: both should be above 0")
    return log_range(bounds[0], bounds[1], count) if kind == "log" else linear_range(bounds[0], bounds[1], count)


def log_range(first: float, last: float, count: int) -> list[float]:
    """``count`` values from ``first`` to ``last``, both above 0, each the same multiple of the one before."""
    return _spaced(first, last, [_between_logs(first, last, i / (count - 1)) for i in range(1, count - 1)], count)


def linear_range(first: float, last: float, count: int) -> list[float]:
    """``count`` values from ``first`` to ``last`` at the same distance."""
    inner = [first * (1 - i / (count - 1)) + last * (i / (count - 1)) for i in range(1, count - 1)]
    return _spaced(first, last, inner, count)


def axis_of(where: str, columns: Mapping[str, Any]) -> Axis:
    """The axis on which all ``columns``, values by key, are walked together.

    Raises:
        UserError: they are not of one length, or none is there.
    """
    if not columns:
        raise UserError(f"{where}: is empty; name a key and its values")
    values = {key: values_of(f"{where}.{key}", said) for key, said in columns.items()}
    if len({len(column) for column in values.values()}) > 1:
        told = ", ".join(f"{key} has {len(column)} values" for key, column in values.items())
        raise UserError(f"{where}: {told}; should be as many of each")
    rows = zip(*values.values(), strict=True)
    return Axis(where, tuple(point_of(dict(zip(values, row, strict=True))) for row in rows))


def point_of(values: Mapping[str, Any]) -> Point:
    """The point that plain ``values`` are.

    Raises:
        UserError: one stands under what is no key.
    """
    if wrong := [key for key in values if not _KEY.fullmatch(key)]:
        raise UserError(f"{wrong[0]!r}: should be a key of the config or a config group, as in key=value")
    return {key.lstrip("+"): f"{key}={text_of(value)}" for key, value in values.items()}


def product(axes: Sequence[Axis]) -> list[list[str]]:
    """The overrides of each member: every point of an axis with every one of the others, the first axis slowest.

    Raises:
        UserError: they are too many, or two axes vary the same key.
    """
    seen: dict[str, str] = {}
    for axis in axes:
        for key in sorted(axis.keys):
            if key in seen:
                raise UserError(f"{key}: stands in {seen[key]} and in {axis.where}; name it once")
            seen[key] = axis.where
    if (size := math.prod(len(axis.points) for axis in axes)) > MOST:
        raise UserError(f"the sweep has {size} members: should be at most {MOST}")
    choices = each_with_each(*(axis.points for axis in axes))
    return [[word for point in points for word in point.values()] for points in choices]


def swept_words(params: Mapping[str, Any]) -> list[str]:
    """Overrides that ``hydra.sweeper.params`` stand for: a text as it would be typed, a list as its values."""
    words = []
    for key, said in params.items():
        items = list(said) if isinstance(said, Sequence) and not isinstance(said, str) else None
        if items is not None and not items:
            raise UserError(f"hydra.sweeper.params.{key}=[]: has no value")
        words.append(f"{key}={said if isinstance(said, str) else ','.join(map(text_of, items or [said]))}")
    return words


def text_of(value: Any) -> str:
    """``value`` as it would be typed behind ``key=``."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text_of(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _NO_TEXT:
        return value
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def _range(where: str, bounds: Sequence[int]) -> list[int]:
    if len(bounds) not in (2, 3) or 0 in bounds[2:]:
        raise UserError(f"{where}: should be [start, stop] or [start, stop, step], the step not 0")
    values = range(*bounds)
    if not values:
        raise UserError(f"{where}: has no value (stop is left out, as in Python)")
    if len(values) > MOST:
        raise UserError(f"{where}: has {len(values)} values, should have at most {MOST}")
    return list(values)


def _between_logs(first: float, last: float, share: float) -> float:
    return math.exp(math.log(first) * (1 - share) + math.log(last) * share)


def _spaced(first: float, last: float, inner: Iterable[float], count: int) -> list[float]:
    """The ends as they are given, and what lies between them: rounded, where that leaves the values apart."""
    if count == 1:
        return [first]
    low, high = sorted((first, last))
    exact = [first, *(min(max(value, low), high) for value in inner), last]
    short = [first, *(float(f"{value:.{_DIGITS}g}") for value in exact[1:-1]), last]
    values = short if _apart(short) else exact
    if isinstance(first, int) and isinstance(last, int) and all(float(value).is_integer() for value in values):
        return [int(value) for value in values]
    return values


def _apart(values: Sequence[float]) -> bool:
    """Whether each is larger than the one before it, or each smaller."""
    pairs = list(pairwise(values))
    return all(a < b for a, b in pairs) or all(a > b for a, b in pairs)
