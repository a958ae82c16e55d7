"""Which nodes a run avoids: those that did not pass its preflight, and those on which it broke down twice in a row.

``attempts.jsonl`` holds all that this is decided from: the line of a requeue names the node that was at fault, where
one was, and a line of its own each node that is excluded. Nothing here asks Slurm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from launcher.runtime.errors import Stopped
from launcher.runtime.failures import AllReduceFailed, Hung, NodeFailed
from launcher.runtime.rundir import RunDir

Event = Mapping[str, Any]
_ANYWHERE = (Hung.__name__, AllReduceFailed.__name__)
"""Kinds of errors that a rank tells of all of them: the one that is at fault need not be the one that tells."""


@dataclass(frozen=True)
class Culprit:
    """The node on which an attempt broke down."""

    node: str
    certain: bool
    """It did not pass the preflight; else the run itself may be at fault."""


@dataclass(frozen=True)
class Exclusion:
    """A node that a run avoids, and why."""

    node: str
    reason: str


def exclusions(events: Iterable[Event], most: int | None = None) -> list[Exclusion]:
    """The nodes that a run avoids, in the order in which they were excluded; the first ``most`` of them."""
    found: dict[str, Exclusion] = {}
    for event in events:
        if event.get("event") == "exclude" and event.get("node"):
            node = str(event["node"])
            found.setdefault(node, Exclusion(node, str(event.get("reason") or "")))
    return list(found.values())[:most]


def culprit(first: Event | None, only_node: str | None, killed_on: Callable[[], str | None]) -> Culprit | None:
    """Whose fault it was that an attempt broke down; None: that cannot be told.

    Args:
        first: the record of the rank that failed first; None: no rank left a word.
        only_node: the one node of the job; None: it has several.
        killed_on: asked where ranks left no word of their own: the node on which one was killed, if known.
    """
    kind = str(first.get("kind")) if first else ""
    if first and kind == NodeFailed.__name__:
        return Culprit(str(first.get("host")), certain=True)
    if first is None or first.get("after_another") or kind == Stopped.__name__:
        node = only_node or killed_on()
    else:
        node = only_node or (None if kind in _ANYWHERE else str(first.get("host")))
    return Culprit(node, certain=False) if node else None


def to_exclude(events: Iterable[Event], now: Culprit | None, reason: str, most: int) -> Exclusion | None:
    """The node to exclude after an attempt that broke down for ``reason``, if any.

    Args:
        events: of ``attempts.jsonl``, those of this end not yet among them. A preemption or a time-out between two
            break-downs does not matter.
        now: the culprit of this attempt.
        most: ``requeue.max_excluded``.
    """
    events = list(events)
    gone = [one.node for one in exclusions(events)]
    if now is None or now.node in gone or len(gone) >= most:
        return None
    if now.certain:
        return Exclusion(now.node, reason)
    broken = [event for event in events if event.get("event") == "requeue" and event.get("broke_down")]
    if not broken or broken[-1].get("node") != now.node:
        return None
    return Exclusion(now.node, f"the run broke down there twice in a row: {reason}")


def exclude(rundir: RunDir, job: str, exclusion: Exclusion) -> None:
    """Append to ``attempts.jsonl`` that the run avoids a node from now on."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    node, reason = exclusion.node, exclusion.reason
    rundir.add_attempt_event(event="exclude", node=node, reason=reason, job_id=job, time=now)
