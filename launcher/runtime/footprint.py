"""What a run will leave on disk, as its task's config tells it before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a task's config may tell of a run that nothing interrupts (its method ``footprint()``); sizes in bytes.

    ``launch.dry_run`` adds the rest: how many checkpoints stay, what trackers make of the numbers, logs.
    """

    steps: int
    """Steps in all."""
    weights_bytes: int
    """The model, as ``session.save`` is given it."""
    optimizer_bytes: int
    """What a full state holds besides, in tensors; 0: nothing."""
    plain_bytes: int = 0
    """Plain values of a state, as JSON; the session's own are not counted."""
    validations: int = 0
    """How often a validation result is offered with a state; 0: there are no best weights."""
    records: int = 0
    """Steps in which numbers of the training are logged."""
    numbers: int = 0
    """Numbers that are logged, of all steps together."""
    pictures: int = 0
    """Pictures that are logged."""
    picture_bytes: int = 0
    """All of these together, as PNG."""
    own_bytes: int = 0
    """What the task itself writes into the run's folder."""
    own_files: int = 0
    """In so many files."""
