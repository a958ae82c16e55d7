"""Which checkpoints a run may go on from: those that its attempts made one from the other.

An attempt says in its start event which checkpoint it goes on from. What an earlier attempt committed beyond that step,
or after it was given up for lost, belongs to no attempt's past: it is an orphan, and passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher.runtime.rundir import RunDir, checkpoint_of


def ancestors(events: Sequence[dict[str, Any]], committed: Iterable[int] = ()) -> dict[int, float]:
    """For each attempt that the last one descends from, itself included, the last step of it that counts.

    ``committed`` are the attempts that have left checkpoints. Where the line comes to an attempt whose record is lost
    (the file was removed, say) it is not known from whom that one descends: it and all before it count, up to the step.
    """
    starts = {int(event["attempt"]): event for event in events if event.get("event") == "start" and "from" in event}
    limits: dict[int, float] = {}
    attempt, limit = max(starts, default=0), math.inf
    while attempt in starts and attempt not in limits:
        limits[attempt] = limit
        parent = checkpoint_of(str(starts[attempt].get("from")))
        if parent is None:
            break
        _, limit, attempt = parent
    if limits and attempt not in limits:
        limits |= {earlier: limit for earlier in (attempt, *committed) if earlier <= attempt and earlier not in limits}
    return limits


def candidates(rundir: RunDir) -> tuple[list[Path], list[Path]]:
    """Full states to go on from, newest first by (step, attempt), and the orphans among them."""
    named = [(path, checkpoint_of(path.name) or ("", 0, 0)) for path in rundir.list_checkpoints("step")]
    limits = ancestors(rundir.attempt_events(), [attempt for _, (_, _, attempt) in named])
    found: list[Path] = []
    orphans: list[Path] = []
    for path, (_, step, attempt) in named:
        known = not limits or step <= limits.get(attempt, -1)  # where no record is left, all count
        (found if known else orphans).append(path)
    return found, orphans
