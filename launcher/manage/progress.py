"""How far a whole sweep is: runs and steps that are done, how fast it goes, and how long it still takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.manage.states import RunState

_LOST = ("FAILED", "CANCELLED")
"""Over, and not done: nothing of these is still to come."""
_BAR = 24
"""Letters of a bar."""
_WINDOW_S = 600.0
"""Seconds that a pace is measured over."""


@dataclass(frozen=True)
class Progress:
    """How far many runs are."""

    runs: int
    done: int
    """COMPLETED."""
    failed: int
    steps: int
    expected_steps: int | None
    """Of all runs that are done or still to come; one that has not begun counts as the others do. None: unknown."""
    work: float
    """Runs done, those under way in part."""
    left: float
    """Runs that are still to come, those under way in part."""
    samples_per_s: float
    """Of all that run now."""


def progress_of(states: Sequence[RunState]) -> Progress:
    """The progress of ``states``, a pure function."""
    known = [expects for state in states if (expects := _total(state))]
    usual = sum(known) / len(known) if known else 0.0
    work = left = expected = 0.0
    steps = 0
    for state in states:
        total, step = _total(state) or usual, state.step if isinstance(state.step, int) else 0
        if state.state == "COMPLETED":
            work, steps, expected = work + 1, steps + step, expected + (step or total)
        elif state.state not in _LOST:
            share = min(step / total, 1.0) if total else 0.0
            work, left, steps, expected = work + share, left + 1 - share, steps + step, expected + total
    going = [state.samples_per_s for state in states if state.state == "RUNNING"]
    return Progress(
        runs=len(states),
        done=sum(state.state == "COMPLETED" for state in states),
        failed=sum(state.state == "FAILED" for state in states),
        steps=steps,
        expected_steps=round(expected) if known else None,
        work=work,
        left=left,
        samples_per_s=sum(speed for speed in going if isinstance(speed, int | float)),
    )


class Pace:
    """How fast the runs get done, over the last minutes of watching them."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def runs_per_hour(self, now_s: float, progress: Progress) -> float | None:
        """Runs an hour since the oldest look that counts; None: nothing has moved yet.

        Args:
            now_s: a clock that never goes back.
        """
        if self._seen and progress.work < self._seen[-1][1]:
            self._seen.clear()  # runs went back to a checkpoint, or were made anew
        self._seen.append((now_s, progress.work))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        begun, work = self._seen[0]
        return 3600 * (progress.work - work) / (now_s - begun) if progress.work > work and now_s > begun else None


def told(progress: Progress, runs_per_hour: float | None = None) -> str:
    """One line: a bar of runs, runs and steps, samples/s, runs an hour, the time left, and how many FAILED."""
    parts = [f"{_bar(progress.work, progress.runs)} {progress.done}/{progress.runs} runs"]
    if progress.expected_steps:
        share = _bar(progress.steps, progress.expected_steps)
        parts.append(f"{share} {progress.steps:,}/{progress.expected_steps:,} steps")
    if progress.samples_per_s:
        parts.append(f"{progress.samples_per_s:.4g} samples/s")
    if runs_per_hour:
        parts.append(f"{runs_per_hour:.3g} runs/h")
        if progress.left:
            parts.append(f"{_clock(3600 * progress.left / runs_per_hour)} left")
    if progress.failed:
        parts.append(f"{progress.failed} FAILED")
    return "  ".join(parts)


def _bar(part: float, whole: float) -> str:
    full = int(_BAR * min(part / whole, 1.0)) if whole else 0
    return "[" + "#" * full + "." * (_BAR - full) + "]"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours}:{minutes:02}:{rest:02}"


def _total(state: RunState) -> int:
    return state.total_steps if isinstance(state.total_steps, int) and state.total_steps > 0 else 0
