"""Which settings differ between runs, what to call them, and which runs are equal but for their seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.compare.reading import PARENT, Run

ABSENT = "–"
"""Shown where a run has no such setting."""


@dataclass(frozen=True)
class Column:
    """A setting in which runs differ."""

    key: str
    """Flat key of the config: ``optim.lr``."""
    name: str
    """The end of it that no other key has: ``lr``."""

    @property
    def is_seed(self) -> bool:
        """Whether runs that differ in nothing else are repetitions of one another."""
        return is_seed(self.key)


def is_seed(key: str) -> bool:
    """Whether ``key`` chooses random numbers and nothing else (``split_seed`` chooses the data that are judged by)."""
    return key.rpartition(".")[2] == "seed"


def differing(runs: Sequence[Run]) -> list[Column]:
    """The settings in which ``runs`` differ, seeds last; what follows from another setting is left out.

    That is a digest of data made from settings that are there themselves, and what only some runs have, with one
    value, because of another setting (the options of a kind of optimiser).
    """
    known = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in known for key in config)
    found = {key: values for key in keys if len(set(values := [_hashable(c.get(key, ABSENT)) for c in known])) > 1}
    if len({run.task for run in runs if run.config}) > 1:
        found["task.target"] = [run.task for run in runs if run.config]
    whole = {key: values for key, values in found.items() if (float, ABSENT) not in values}
    follow = [key for key, values in found.items() if _may_follow(key, values)]
    for key in follow:
        if any(_follows(found[key], other) for name, other in whole.items() if name != key and name not in follow):
            del found[key]
    names = short_names(found, keys)
    return [Column(key, names[key]) for key in sorted(found, key=lambda key: (is_seed(key), *_order(key)))]


def short_names(wanted: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """For each of ``wanted`` the shortest end (``lr`` of ``optim.lr``) that none of the other ``keys`` has."""
    wanted = list(wanted)
    ends = Counter(end for key in {*keys, *wanted} for end in _ends(key))
    return {key: next((end for end in _ends(key) if ends[end] == 1), key) for key in wanted}


def setting_of(run: Run, columns: Iterable[Column]) -> Hashable:
    """Equal for runs that are equal but for their seed, and for what was made from a seed."""
    columns = list(columns)
    made = {f"{column.key.rpartition('.')[0]}.digest" for column in columns if column.is_seed}
    kept = [column.key for column in columns if not column.is_seed and column.key not in made]
    return tuple(_hashable(value_of(run, key)) for key in kept)


def value_of(run: Run, key: str) -> Any:
    """The setting ``key`` of ``run``; ``ABSENT`` where it has none."""
    return run.task if key == "task.target" else run.config.get(key, ABSENT)


def shown(value: Any) -> str:
    """A setting as a person reads it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def described(values: Mapping[str, Any]) -> str:
    """``lr=0.003 warmup_steps=10``."""
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


def _hashable(value: Any) -> Hashable:
    """1 and 1.0 are one setting, and neither is true."""
    return (bool, value) if isinstance(value, bool) else (float, value)


def _ends(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]


def _order(key: str) -> tuple[bool, str]:
    return key != "task.target", ""


def _may_follow(key: str, values: Sequence[Hashable]) -> bool:
    if key == PARENT:  # whatever else differs with it
        return False
    return key.endswith(".digest") or ((float, ABSENT) in values and len(set(values)) == 2)


def _follows(values: Sequence[Hashable], other: Sequence[Hashable]) -> bool:
    return len(set(zip(other, values, strict=True))) == len(set(other))
