"""What runs will take on disk: predicted from their plans, before anything is trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime.footprint import Footprint
from launcher.runtime.plan import Plan
from launcher.runtime.settings import CheckpointSettings, TrackerSettings
from launcher.submission.snapshot import Snapshot

_PLANS_BYTES = 9_000
"""A plan, which stands in the run's folder and among those of its submission."""
_RECORDS_BYTES = 7_000
"""The rest that each run has: config, attempts, lease, status, summary, and what rank 0 says in its log."""
_RANK_BYTES = 2_500
"""A rank's log, and what its job prints."""
_MANIFEST_BYTES = 800
_RANDOM_BYTES = 27_000
"""The random number generators of a rank, as JSON."""
_CSV_BYTES, _LOSSES_BYTES, _TIMINGS_BYTES = 36, 40, 110
"""A number in ``metrics.csv``; a row of the two other files."""
_CURVES_BYTES = 130_000
_TENSORBOARD_BYTES, _WANDB_BYTES, _MLFLOW_BYTES = 51, 96, 273
"""A number in an event file, in W&B's, in MLflow's database."""
_MLFLOW_EMPTY_BYTES = 960_000


@dataclass(frozen=True)
class Space:
    """Bytes, and files and folders: each takes an inode."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Space) -> Space:
        return Space(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Space) -> Space:
        return Space(self.bytes - other.bytes, self.files - other.files)

    def __mul__(self, count: int) -> Space:
        return Space(self.bytes * count, self.files * count)


@dataclass(frozen=True)
class Need:
    """What one run takes."""

    fullest: Space
    """While it runs, at the moment when it takes most."""
    end: Space
    """Once it is COMPLETED."""


@dataclass(frozen=True)
class Kind:
    """Runs of a sweep that take the same."""

    footprint: Footprint | None
    """None: their task does not tell."""
    checkpoint: CheckpointSettings
    tracker: TrackerSettings
    ranks: int

    def saved_bytes(self) -> tuple[int, int]:
        """Bytes of a full state, and of a checkpoint of the weights alone; 0 where the task does not tell."""
        if self.footprint is None:
            return 0, 0
        return _state(self.footprint, self.ranks).bytes, _weights(self.footprint).bytes

    def need(self) -> Need:
        """What one of them takes, checkpoints left out where the task does not tell."""
        footprint = self.footprint or Footprint(steps=0, weights_bytes=0, optimizer_bytes=0)
        always = Space(2 * _PLANS_BYTES + _RECORDS_BYTES, 10) + Space(_RANK_BYTES, 3) * self.ranks
        always += Space(500, 3) if self.ranks > 1 else Space()  # where they met
        always += Space(footprint.own_bytes, footprint.own_files) + tracked(footprint, self.tracker)
        drawn = Space(_CURVES_BYTES, 2) if self.tracker.csv and self.tracker.curves else Space()
        if self.footprint is None:
            return Need(always + drawn, always + drawn)
        saved = checkpoints(footprint, self.checkpoint, self.ranks)
        fullest = max(saved.training, saved.ending + drawn, key=lambda space: space.bytes)
        return Need(always + fullest, always + drawn + saved.end)


def kind_of(plan: Plan) -> Kind:
    """What tells how much a run of ``plan`` takes. A task's config may have ``footprint()`` (see ``Footprint``).

    Raises:
        UserError: the task's config cannot tell any more: its data are gone.
    """
    config = plan.config()
    footprint = config.footprint() if hasattr(type(config), "footprint") else None
    settings, hardware = plan.settings(), plan.hardware
    ranks = hardware["nodes"] * hardware["tasks_per_node"]
    return Kind(footprint, settings.checkpoint, settings.tracker, ranks)


def kinds_of(plans: Iterable[Plan]) -> Counter[Kind]:
    """How many of ``plans`` take the same."""
    return Counter(map(kind_of, plans))


@dataclass(frozen=True)
class Checkpoints:
    """What the folder ``checkpoints`` of a run takes."""

    training: Space
    """At the moment when it takes most."""
    ending: Space
    """Once all is saved and before a run that keeps weights alone lets go of its states."""
    end: Space
    """Once it is COMPLETED."""


def checkpoints(footprint: Footprint, settings: CheckpointSettings, ranks: int) -> Checkpoints:
    """What the folder ``checkpoints`` takes.

    Where the last validation was the best one, best and final weights are one file on disk, counted twice here.
    """
    state, weights = _state(footprint, ranks), _weights(footprint)
    at_end = settings.at_end or "state"
    every, steps = settings.every_steps, footprint.steps
    saves = steps // every if every else 0
    at_all = saves + (at_end == "state" and not (every and steps % every == 0))  # and the one that the end saves
    best = bool(settings.best and footprint.validations)
    training = state * _before_one_goes(settings, at_all)
    training += weights * (best * (1 if saves else min(footprint.validations, 2)))  # the next is written beside it
    ending = end = weights * (best + (at_end == "weights"))
    ending += state * _staying(settings, at_all)
    end += state * _staying(settings, at_all) if at_end == "state" else Space()
    hint = Space(30, 1)  # LATEST
    return Checkpoints(training + hint, ending + hint, end + (hint if at_end == "state" else Space()))


def _staying(settings: CheckpointSettings, saves: int) -> int:
    """How many full states are there after ``saves`` of them: the last ones, and those that stay for good."""
    last = min(saves, settings.keep_last)
    if not settings.keep_every or not settings.every_steps:
        return last
    apart = math.lcm(settings.every_steps, settings.keep_every) // settings.every_steps
    return last + (saves - last) // apart


def _before_one_goes(settings: CheckpointSettings, saves: int) -> int:
    """The most that are there at a time: the next one is written before the oldest goes."""
    return _staying(settings, saves - 1) + 1 if saves else 0


def _state(footprint: Footprint, ranks: int) -> Space:
    tensors = 1 + bool(footprint.optimizer_bytes)
    plain = (2 * footprint.plain_bytes + _RANDOM_BYTES) * ranks + _MANIFEST_BYTES
    return Space(footprint.weights_bytes + footprint.optimizer_bytes + plain, tensors + ranks + 2)


def _weights(footprint: Footprint) -> Space:
    return Space(footprint.weights_bytes + footprint.plain_bytes + _MANIFEST_BYTES, 4)


def tracked(footprint: Footprint, settings: TrackerSettings) -> Space:
    """What trackers write while the run goes on; MLflow's database stands beside the sweeps, and counts too."""
    numbers = footprint.numbers + footprint.records  # the session adds one of its own
    found = Space()
    if settings.csv:
        rows = footprint.records * (_LOSSES_BYTES + _TIMINGS_BYTES)
        found += Space(numbers * _CSV_BYTES + rows + 120, 3)
    pictures = footprint.picture_bytes
    if settings.tensorboard:
        found += Space(numbers * _TENSORBOARD_BYTES + pictures + 5_000, 3)
    if settings.wandb and settings.wandb_mode != "disabled":
        found += Space(numbers * _WANDB_BYTES + pictures + 20_000, 14 + footprint.pictures)
    if settings.mlflow and is_here(settings):
        found += Space(numbers * _MLFLOW_BYTES + pictures + 4_000, 5 + footprint.pictures)
    return found


def is_here(settings: TrackerSettings) -> bool:
    """Whether MLflow's store is a file, not a server's."""
    return settings.mlflow_uri is None or settings.mlflow_uri.startswith("sqlite:")


def shared(kinds: Iterable[Kind], snapshot: Snapshot | None) -> Space:
    """What all runs of a sweep share: the copy of the code where it is not there yet, and MLflow's database."""
    files = [] if snapshot is None or snapshot.path.exists() else list(snapshot.copies.values())
    folders = {parent for name in snapshot.copies for parent in Path(name).parents} if snapshot and files else ()
    copy = Space(sum(file.stat().st_size for file in files), len(files) + len(folders))
    stores = any(kind.tracker.mlflow and is_here(kind.tracker) for kind in kinds)
    return copy + (Space(_MLFLOW_EMPTY_BYTES, 1) if stores else Space()) + Space(2_000, 12)
