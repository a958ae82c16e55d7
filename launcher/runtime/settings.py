"""The sections of the config that the session itself obeys, whatever task it carries. All of them execution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.runtime.sections import Positive, Section


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Section):
    """When the state is saved and how much of it is kept."""

    every_steps: Positive | None
    """Save the full state each so many steps; null: never on a cadence."""
    keep_last: Positive
    """How many full states stay while training; older ones go once a newer one is committed."""
    keep_every: Positive | None
    """Steps divisible by this stay for good; null: none does."""
    at_end: Literal["state", "weights", "nothing"] | None
    """What a finished run keeps besides its best weights: its last full state, or its last weights.
    null: state for a single run, weights for a member of a sweep."""
    best: bool
    """Keep the weights of the best validation."""


@dataclass(frozen=True, kw_only=True)
class TrackerSettings(Section):
    """Where numbers go: any of these, or none. Chosen together: ``tracker=[csv,tensorboard]``."""

    csv: bool = False
    """metrics.csv, losses_log.csv, timing_logs.csv and the curves."""
    tensorboard: bool = False
    """Event files under ``tb/``."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a session needs to know besides its task's config."""

    checkpoint: CheckpointSettings
    tracker: TrackerSettings
