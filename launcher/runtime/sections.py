"""Config sections: frozen dataclasses that check themselves, and what is said when a value does not fit.

A section's fields belong to one of two halves. *Science* changes what is learned and is hashed into the run's
identity; *execution* changes how fast or where, and is not. ``execution`` and ``added`` mark the exceptions.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from launcher.runtime.errors import UserError
from launcher.runtime.redaction import REDACTED

T = TypeVar("T")

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]

_EXECUTION = {"half": "execution"}
_ADDED = {"added": True}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of a config section: unknown keys and values of another type are refused by ``parse``."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


def execution(default: Any = dataclasses.MISSING) -> Any:
    """A field of the execution half: how, where and how often; never part of the run's identity."""
    return field(default=default, metadata=_EXECUTION)


def added(default: Any) -> Any:
    """A science field that came after the first release: not hashed while at ``default``, so old ids stay."""
    return field(default=default, metadata=_ADDED)


def typed_as(section: type[Any]) -> dict[str, str]:
    """The key that is typed for each field of ``section``: its name, but for a key that Python has taken.

    Such a field says so: ``continue_: Annotated[str, Field(alias="continue")]``.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    return {f.name: _alias(hints[f.name]) or f.name for f in dataclasses.fields(section)}


def _alias(hint: Any) -> str | None:
    notes = getattr(hint, "__metadata__", ())
    return next((note.alias for note in notes if isinstance(note, FieldInfo) and note.alias), None)


def halves(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a dataclass into (science, execution), two nested mappings of JSON values that ``merged`` joins again."""
    science: dict[str, Any] = {}
    execution: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("half") == "execution":
            execution[f.name] = _plain(value)
        elif dataclasses.is_dataclass(value):
            inner_science, inner_execution = halves(value)
            science[f.name] = inner_science
            if inner_execution:
                execution[f.name] = inner_execution
        else:
            science[f.name] = _plain(value)
    return science, execution


def hashed(config: Any) -> dict[str, Any]:
    """The part of ``config`` that makes the run's identity: science, without later fields at their default."""
    kept: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("half") == "execution" or (f.metadata.get("added") and value == f.default):
            continue
        kept[f.name] = hashed(value) if dataclasses.is_dataclass(value) else _plain(value)
    return kept


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Join two nested mappings; where both hold a mapping the join goes on inside, elsewhere ``second`` wins."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` as ``{"optim.lr": 1}``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def parse(schema: type[T], values: Mapping[str, Any], section: str = "") -> T:
    """Build ``schema`` from nested JSON values.

    Args:
        section: name of the section that the values stand in, if they are not the whole config.

    Raises:
        UserError: every key that is unknown, missing or of another type, in one line.
    """
    try:
        # As JSON, where strict still takes a mapping for a section.
        built: T = _parsed(typing.cast(Any, schema), json.dumps(values))
    except ValidationError as error:
        raise UserError("; ".join(_said(schema, e, section) for e in error.errors(include_url=False))) from None
    return built


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to ``name``, or nothing where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


@lru_cache(maxsize=64)  # most sections are the same in all members of a sweep; they are frozen
def _parsed(schema: Any, text: str) -> Any:
    return _adapter(schema).validate_json(text)


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):  # nearly all, of a thousand configs
        return value
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _said(schema: type[Any], error: ErrorDetails, within: str) -> str:
    path, section = _locate(schema, error["loc"])
    key = ".".join([within, *path] if within else path)
    kind = error["type"]
    if kind == "value_error":  # a cross-check of ours: it names its own keys
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    given = error["input"] if "secrets" not in path else REDACTED
    if kind == "unexpected_keyword_argument":
        siblings = set(typed_as(section).values())
        return f"unknown key '{key}'{nearest(path[-1], siblings)} (allowed here: {', '.join(sorted(siblings))})"
    if kind.startswith("missing"):
        return f"missing key '{key}'"
    if kind == "union_tag_not_found":
        return f"missing key '{key}.kind'"
    if kind == "union_tag_invalid":
        given, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        return f"{key}.kind={given!r}: should be one of {tags}{nearest(given, _quoted(tags))}"
    wanted = error["msg"].removeprefix("Input should be ")
    hint = nearest(given, _quoted(wanted)) if isinstance(given, str) else ""
    return f"{key}={given!r}: should be {wanted}{hint}"


def _quoted(text: str) -> list[str]:
    return [word for word in text.split("'") if word.isidentifier()]


def _locate(schema: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The keys as the user typed them, and the dataclass that the last of them stands in.

    A union of sections puts the ``kind`` that it chose behind its key; the user typed no such thing.
    """
    path: list[str] = []
    section, holder = schema, schema
    parts = list(loc)
    while parts:
        part = parts.pop(0)
        path.append(str(part))
        holder = section
        hint = typing.get_type_hints(section).get(str(part)) if dataclasses.is_dataclass(section) else None
        options = [o for o in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(o)]
        if len(options) > 1 and parts:
            tag = parts.pop(0)
            section = holder = next(o for o in options if tag in typing.get_args(typing.get_type_hints(o)["kind"]))
        else:
            section = options[0] if options else None
    return path, holder
