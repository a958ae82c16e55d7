"""What a drill found: when what happened, what was lost, and whether the copies ended with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from launcher.drill.copies import Copies, Copy
from launcher.runtime.errors import ExitCode
from launcher.runtime.progress import FIRST_STEP, HELD

WARNED, KILLED = "warned", "killed"
"""The interruptions, in this order."""
_HEADINGS = ("copy", "event", "step", "saved_s", "queue_s", "start_up_s", "back_s", "redone")


@dataclass(frozen=True)
class Interruption:
    """What was done to the interrupted copy."""

    kind: str
    """WARNED or KILLED."""
    time: float
    """Seconds since the epoch."""


@dataclass
class Log:
    """What was seen of one copy from outside, in seconds since the epoch."""

    asked: list[float]
    """When each of its starts was asked for: submitted, or interrupted before."""
    began: list[float | None]
    """When each began, by its queue; None: not known."""
    interruptions: list[Interruption]


@dataclass(frozen=True)
class Row:
    """A start of a copy, and what led to it."""

    copy: str
    event: str
    """``started``, WARNED or KILLED."""
    step: int
    """At which it was interrupted; of the first start: its first step."""
    saved_s: float | None
    """From the warning to the end of the attempt, saved."""
    queue_s: float | None
    """From the submission, or the end of the attempt before, to the start of the job: Slurm's own delay included."""
    start_up_s: float | None
    """From there to the end of the first step."""
    back_s: float | None
    """From the interruption to the end of the first step after it."""
    redone: int | None
    """Steps that were computed again."""


def rows(copy: Copy, log: Log) -> Iterator[Row]:
    """The starts of a copy, oldest first."""
    events = copy.rundir.attempt_events()
    firsts = [event for event in events if event.get("event") == FIRST_STEP]
    held = [event for event in events if event.get("event") == HELD]
    for i, first in enumerate(firsts):
        began = log.began[i] if i < len(log.began) else None
        stepped = _time(first)
        start_up = None if began is None else max(0.0, stepped - began)
        if i == 0:
            queue = None if began is None else max(0.0, began - log.asked[0])
            yield Row(copy.name, "started", int(first["step"]), None, queue, start_up, None, None)
            continue
        if i > len(log.interruptions):  # it was started once more than anybody asked for: a node failed
            yield Row(copy.name, "started again", int(first["step"]), None, None, start_up, None, None)
            continue
        done = log.interruptions[i - 1]
        end = _end(events, held[i - 1].get("attempt"))
        left = done.time if end is None else _time(end)
        saved = left - done.time if end is not None and end.get("code") == ExitCode.STOPPED_SAVED else None
        reached = int(end["step"]) if end is not None else int(held[i - 1]["done"])
        queue = None if began is None else max(0.0, began - left)
        lost = max(0, reached - _start(events, first.get("attempt")))
        at = int(held[i - 1]["step"])
        yield Row(copy.name, done.kind, at, saved, queue, start_up, stepped - done.time, lost)


def _start(events: Sequence[Mapping[str, Any]], attempt: Any) -> int:
    """The step that an attempt went on from."""
    found = [e for e in events if e.get("event") == "start" and e.get("attempt") == attempt]
    return int(found[-1]["step"] or 0)


def _end(events: Sequence[Mapping[str, Any]], attempt: Any) -> Mapping[str, Any] | None:
    found = [e for e in events if e.get("event") == "end" and e.get("attempt") == attempt]
    return found[-1] if found else None


def _time(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(str(event["time"])).timestamp()


@dataclass(frozen=True)
class Findings:
    """A finished drill."""

    exact: bool
    verdict: str
    steps: int
    weights: Mapping[str, str | None]
    """``weights_sha256`` of each copy."""
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """A mapping of JSON values, seconds in tenths."""
        tenths = [{n: round(v, 1) if isinstance(v, float) else v for n, v in asdict(row).items()} for row in self.rows]
        return {**asdict(self), "rows": tenths}

    def lines(self) -> list[str]:
        """The table, and the verdict below it."""
        cells = [{name: _shown(name, value) for name, value in asdict(row).items()} for row in self.rows]
        heads = {
            name: name.removesuffix("_s").replace("_", " ") + (" s" if name.endswith("_s") else "")
            for name in _HEADINGS
        }
        shown = [name for name in _HEADINGS if any(cell[name] for cell in cells)]
        width = {name: max(len(line[name]) for line in [heads, *cells]) for name in shown}
        table = [
            "  ".join(line[n].ljust(width[n]) if n in ("copy", "event") else line[n].rjust(width[n]) for n in shown)
            for line in [heads, *cells]
        ]
        return [*(line.rstrip() for line in table), self.verdict]


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if name.endswith("_s") else str(value)


def judge(copies: Copies, logs: Mapping[str, Log], steps: int) -> Findings:
    """Hold the finished copies against each other."""
    found = tuple(row for copy in copies.both for row in rows(copy, logs[copy.name]))
    summaries = {copy.name: copy.rundir.read(copy.rundir.summary) or {} for copy in copies.both}
    weights = {name: summary.get("weights_sha256") for name, summary in summaries.items()}
    ends = [summary.get("step") for summary in summaries.values()]
    warned = next((row for row in found if row.event == WARNED), None)
    exact, verdict = True, ""
    whole, interrupted = weights.values()
    if not whole or not interrupted:
        exact, verdict = False, "nothing to compare: the task never called session.save with a model"
    elif whole != interrupted:
        exact = False
        verdict = f"not exact: after step {ends[0]} the weights are {whole[:12]}, and {interrupted[:12]} where it was "
        verdict += f"interrupted{_why(copies.whole)}"
    elif ends[0] != ends[1]:
        exact, verdict = False, f"not exact: one copy ended after step {ends[0]}, the interrupted one after {ends[1]}"
    elif warned is not None and warned.redone:
        exact = False
        verdict = f"not exact: {warned.redone} steps were done again after a warning: no save fits into the grace"
    else:
        verdict = f"exact: after step {ends[0]}, a warning and a kill the weights are the same bits ({whole[:12]})"
    return Findings(exact, verdict, steps, weights, found)


def _why(copy: Copy) -> str:
    trainer = copy.values.get("trainer")
    is_off = isinstance(trainer, Mapping) and trainer.get("deterministic") is False
    if is_off and copy.job.plan.hardware["device"] == "cuda":
        return "; trainer.deterministic=false, and without it GPUs do not repeat themselves: launch it with true"
    return "; what the task draws or counts is not all in what it saves and restores"
