"""Whether the starts of one job lead anywhere: pure functions over the events of ``attempts.jsonl``.

A job that goes on where another was ended (a chain) counts the starts of that one too.

Slurm counts restarts, but not what they achieved, and its own limit (MAX_BATCH_REQUEUE, slurmctld.h of 22.05) does not
count requeues that somebody asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]
FIRST_STEP, HELD = "first_step", "held"
"""Events of a drill (``launcher.runtime.drill``): an attempt's first step is done; it waits to be interrupted."""


def starts(events: Iterable[Event], job_id: str) -> int:
    """How often ``job_id`` was started, as far as ``attempts.jsonl`` tells.

    A start that broke down before it could write its event is known by the requeue that followed it.
    """
    return len(_begun_at(events, job_id))


def without_progress(events: Iterable[Event], job_id: str, newest_step: int) -> int:
    """How many of the latest starts of ``job_id``, in a row, left no newer checkpoint than they began with.

    A start made progress if a later start of the job began at a higher step or, where none did, if ``newest_step`` is
    higher. An event without ``step`` counts as one from step 0.

    Args:
        newest_step: step of the newest full state on disk; 0: there is none.
    """
    reached, count = newest_step, 0
    for begun_at in reversed(_begun_at(events, job_id)):
        if begun_at is not None and begun_at < reached:
            break
        reached = max(reached, begun_at or 0)
        count += 1
    return count


def requeues(events: Iterable[Event], job_id: str, reason: str) -> int:
    """How often ``job_id`` was put back into the queue for ``reason``."""
    return sum(event.get("reason") == reason for event in _of_job(events, job_id, "requeue"))


def began_since_requeue(events: Iterable[Event], job_id: str, restarts: int) -> bool:
    """Whether ``job_id``, requeued ``restarts`` times, has written a start since it was last put back into the queue.

    Slurm requeues some jobs without a word of ours: a start that tells another ``restarts`` is of before that.
    """
    found = list(_of_job(events, job_id, "start", "requeue"))
    return bool(found) and found[-1].get("event") == "start" and found[-1].get("restarts", restarts) == restarts


def _begun_at(events: Iterable[Event], job_id: str) -> Sequence[int | None]:
    """The step at which each start of the job began; None: it left no word, and so no checkpoint either."""
    found: list[int | None] = []
    told = False
    for event in _of_job(events, job_id, "start", "requeue"):
        if event.get("event") == "start":
            found.append(int(event.get("step") or 0))
        elif not told:
            found.append(None)
        told = event.get("event") == "start"
    return found


def _of_job(events: Iterable[Event], job_id: str, *kinds: str) -> Iterable[Event]:
    """Those of ``job_id``, and of the jobs that it goes on for: each was named by the one before (``next``)."""
    events = list(events)
    before = {str(event["next"]): str(event.get("job_id")) for event in events if event.get("next")}
    line = [job_id]
    while line[-1] in before and before[line[-1]] not in line:
        line.append(before[line[-1]])
    return (event for event in events if event.get("event") in kinds and str(event.get("job_id")) in line)
