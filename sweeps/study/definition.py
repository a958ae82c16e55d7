"""What a study is: its space and goal, how it searches, and the recipe of its trials' plans. Goes to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from launcher.runtime.recipe import Recipe
from launcher.runtime.sections import NotNegative, Positive, Section, flat
from launcher.submission.goal import Goal
from sweeps.study.space import Axis, read_space

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class StudySettings(Section):
    """The ``study`` section of a sweep's file."""

    n_trials: Positive = 64
    """Trials in all, whatever became of them."""
    timeout_min: float | None = None
    """Minutes, from the first trial that a command's workers begin, after which none begins; null: no limit."""
    storage: Literal["journal", "sqlite"] = "journal"
    """A file that is appended to (works on NFS), or a database."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Tree-structured Parzen estimator (Bergstra et al. 2011), at random, or every combination of choices."""
    seed: NotNegative = 0
    pruner: Literal["median", "none"] = "none"
    """median: a trial ends early whose best value so far is worse than the median of the others' at its step."""
    warmup_steps: NotNegative = 0
    """No trial is pruned before this step."""
    startup_trials: NotNegative = 5
    """So many trials are drawn at random, and so many finish before one is pruned."""

    def __post_init__(self) -> None:
        if self.timeout_min is not None and not (0 < self.timeout_min < math.inf):
            raise ValueError(f"timeout_min={self.timeout_min} should be above 0 minutes, or null")


@dataclass(frozen=True)
class Limits:
    """When a study is over: what its newest command said."""

    n_trials: int
    timeout_min: float | None = None
    began: float | None = None
    """When the first trial since that command was begun, seconds since the epoch; None: none was."""

    def is_open(self, trials: int, now: float) -> bool:
        """Whether one more trial may begin where there are ``trials``."""
        in_time = self.timeout_min is None or self.began is None or now < self.began + 60 * self.timeout_min
        return trials < self.n_trials and in_time


@dataclass(frozen=True)
class Definition:
    """One study, frozen for its workers."""

    goal: Goal
    space: tuple[Axis, ...]
    settings: StudySettings
    recipe: Recipe
    overrides: tuple[str, ...] = field(default=())
    """What all trials have, as ``members.jsonl`` says it."""

    @property
    def curve(self) -> str | None:
        """The curve that is reported while a trial trains; None: the metric has none."""
        if "/" in self.goal.metric:
            return self.goal.metric
        return {"best_val_loss": "val/loss", "val_loss": "val/loss", "train_loss": "train/loss"}.get(self.goal.metric)

    @property
    def grid_size(self) -> int | None:
        """How many trials a grid has; None: it is no grid."""
        return math.prod(len(axis.choices) for axis in self.space) if self.settings.sampler == "grid" else None

    def identity(self) -> dict[str, Any]:
        """What makes results comparable: plain values by key. Another sampler goes on with the same study."""
        searched = {axis.key for axis in self.space}
        fixed = flat({**self.recipe.values, "science": self.recipe.plan.science})
        science = {key: value for key, value in fixed.items() if key.startswith("science.")}
        return {
            "metric": self.goal.metric,
            "direction": self.goal.direction,
            "study.storage": self.settings.storage,
            **{f"search.{axis.key}": axis.to_json() for axis in self.space},
            **{k[8:]: v for k, v in science.items() if not _is_below(k[8:], searched)},
        }

    def differences(self, other: Definition) -> list[str]:
        """``key one -> other`` for all that makes ``other`` another study."""
        before, after = self.identity(), other.identity()
        none: Any = "none"
        keys = [key for key in {**before, **after} if before.get(key, none) != after.get(key, none)]
        return [f"{key} {before.get(key, none)} -> {after.get(key, none)}" for key in keys]

    def to_json(self) -> dict[str, Any]:
        """A mapping of JSON values that ``from_json`` reads."""
        return {
            "goal": self.goal.request(),
            "space": {axis.key: axis.to_json() for axis in self.space},
            "settings": asdict(self.settings),
            "recipe": self.recipe.to_json(),
            "overrides": list(self.overrides),
        }

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Definition:
        """Read what ``to_json`` made."""
        return Definition(
            Goal(**said["goal"]),
            read_space(said["space"]),
            StudySettings(**said["settings"]),
            Recipe.from_json(said["recipe"]),
            tuple(said["overrides"]),
        )


def _is_below(key: str, searched: set[str]) -> bool:
    """Whether a search decides on ``key``: on itself, or on what its section is settled by (a digest of the data)."""
    return key in searched or (key.endswith(".digest") and any(s.startswith(key[:-6]) for s in searched))
