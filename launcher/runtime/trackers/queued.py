"""Trackers on threads of their own: one that breaks, hangs or is slow costs the training loop nothing.

Each has a queue that never blocks whoever logs. A full one drops its oldest entry: what is newest is what people look
at, and what was dropped stands in the run's own ``metrics.csv``. Threads begin with the first log of a run, in the
process that trains it: a worker that forks members has none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from launcher.runtime.errors import TRACKER_THREAD
from launcher.runtime.trackers.values import Value, recordable

log = logging.getLogger(__name__)

_MOST = 10_000
_MOST_BYTES = 64 << 20
_NUMBER_BYTES = 100
"""What a number takes in a queue, roughly, its name included."""
_GATHER_S = 5.0
"""How long a tracker may gather before it is asked to write."""
_AGAIN_S = 60.0
"""How long after a tracker could not be opened that is tried again."""
_STOP_S = 5.0
"""Longest wait where the run was stopped: its grace is for the state."""
_SHOWN = 300
"""Most characters of a library's error."""


class Recorder(Protocol):
    """A tracker that may take its time, as a queue feeds it: all calls come from one thread."""

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record ``values`` as of optimizer step ``step``, or gather them."""

    def flush(self) -> None:
        """Write what was gathered."""

    def catch_up(self) -> bool:
        """Before the end, where entries were dropped or refused: record what is missing from the run's own files.

        Returns:
            Whether nothing is missing any more.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """As for ``Tracker``."""


@dataclass(frozen=True)
class _Entry:
    values: Mapping[str, Value]
    step: int
    size: int

    @property
    def is_in_ledger(self) -> bool:
        """Whether ``metrics.csv`` has all of it: it holds numbers alone."""
        return not any(isinstance(value, str | np.ndarray) for value in self.values.values())


class Queued:
    """One tracker behind a queue, on its thread. Of what goes wrong the first is said, the others are counted."""

    def __init__(
        self,
        name: str,
        opened: Callable[[], Recorder],
        advice: str,
        *,
        most: int = _MOST,
        most_bytes: int = _MOST_BYTES,
        gather_s: float = _GATHER_S,
        again_s: float = _AGAIN_S,
    ) -> None:
        """Begin to open it.

        Args:
            opened: opens the tracker; called on the thread, again every ``again_s`` seconds while it raises.
            advice: how to get what it has not recorded.
        """
        self.name, self.dropped, self.errors = name, 0, 0
        self._open, self._advice = opened, advice
        self._most, self._most_bytes = most, most_bytes
        self._gather_s, self._again_s = gather_s, again_s
        self._waiting: deque[_Entry] = deque()
        self._size = 0
        self._at_work = self._gathered = False
        self._said_full = False
        self._ending: Mapping[str, Any] | None = None
        self._caught_up = self._lost_for_good = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=TRACKER_THREAD + name, daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Queue ``values``, which nobody may change any more; never waits for the tracker."""
        entry = _Entry(values, step, sum(map(_size_of, values.values())))
        with self._changed:
            self._waiting.append(entry)
            self._size += entry.size
            while len(self._waiting) > self._most or (self._size > self._most_bytes and len(self._waiting) > 1):
                self._lose(self._waiting.popleft())
            self._changed.notify_all()
        if self.dropped and not self._said_full:
            self._said_full = True
            log.warning("%s: is too slow, its queue is full and drops what is oldest; %s", self.name, self._advice)

    def end(self, summary: Mapping[str, Any]) -> None:
        """No more is logged: let it drain and finish with ``summary``."""
        with self._changed:
            self._ending = summary
            self._changed.notify_all()

    def wait(self, until: float) -> bool:
        """Wait for its end until ``time.monotonic()`` is ``until``, and say what is missing; whether nothing is."""
        self._thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            left = len(self._waiting) + self._at_work
        late = self._thread.is_alive()
        if not (late or left or ((self.dropped or self.errors) and not self._caught_up)):
            return True
        words = [
            f"did not come to an end in time, {left} logs are left"
            if late
            else f"{left} logs are left"
            if left
            else "",
            f"{self.dropped} were dropped" if self.dropped else "",
            f"{self.errors} errors" if self.errors else "",
        ]
        log.warning("%s: not all is recorded (%s); %s", self.name, ", ".join(filter(None, words)), self._advice)
        return False

    def wait_idle(self, until: float) -> bool:
        """Wait until ``time.monotonic()`` is ``until``, at most, for all to be written; whether it is."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, max(0.0, until - time.monotonic()))

    def _is_idle(self) -> bool:
        return not (self._waiting or self._at_work or self._gathered) or not self._thread.is_alive()

    def _work(self) -> None:
        try:
            recorder = self._opened()
            if recorder is not None:
                self._feed(recorder)
                self._finish(recorder)
        finally:
            with self._changed:
                self._at_work = self._gathered = False
                self._changed.notify_all()

    def _finish(self, recorder: Recorder) -> None:
        if self.dropped or self.errors:
            self._caught_up = bool(self._do(recorder.catch_up)) and not self._lost_for_good
        summary, before = self._ending or {}, self.errors
        self._do(lambda: recorder.finish(summary))
        self._caught_up = self._caught_up and self.errors == before

    def _opened(self) -> Recorder | None:
        """The tracker; None where the run has ended and it still cannot be opened."""
        while True:
            last = self._ending is not None
            if recorder := self._do(self._open):
                return recorder  # type: ignore[no-any-return]
            if last:
                return None
            with self._changed:
                self._changed.wait_for(lambda: self._ending is not None, self._again_s)

    def _feed(self, recorder: Recorder) -> None:
        flush_at: float | None = None
        while True:
            entry = self._next(flush_at)
            if entry is not None:
                self._hand_on(recorder, entry)
                flush_at = flush_at or time.monotonic() + self._gather_s
            if flush_at is not None and (entry is None or time.monotonic() >= flush_at):
                self._do(recorder.flush)
                flush_at, self._gathered = None, False
            elif entry is None:
                return

    def _hand_on(self, recorder: Recorder, entry: _Entry) -> None:
        before = self.errors
        self._do(lambda: recorder.log(entry.values, entry.step))
        self._lost_for_good |= self.errors > before and not entry.is_in_ledger

    def _lose(self, entry: _Entry) -> None:
        self._size -= entry.size
        self.dropped += 1
        self._lost_for_good |= not entry.is_in_ledger

    def _next(self, until: float | None) -> _Entry | None:
        """The oldest entry; None where there is none by then, or at the end."""
        with self._changed:
            timeout = None if until is None else max(0.0, until - time.monotonic())
            self._at_work = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._ending is not None, timeout)
            if not self._waiting:
                return None
            self._at_work = self._gathered = True
            entry = self._waiting.popleft()
            self._size -= entry.size
            return entry

    def _do(self, act: Callable[[], Any]) -> Any:
        """What ``act`` returns; None where it raised, which is said the first time."""
        try:
            return act()
        except BaseException as error:  # a library's, SystemExit too: it ends no thread, and the training is not told
            self.errors += 1
            if self.errors == 1:
                said = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
                log.warning("%s: %s; training goes on without it; %s", self.name, said, self._advice)
            return None


class Beside:
    """All trackers that are fed beside the training; they are waited for together."""

    def __init__(self, queues: Sequence[Queued], wait_s: float) -> None:
        """``wait_s``: longest wait at the end of a run that is done or failed."""
        self.queues = list(queues)
        self.patience_s = wait_s
        self._refused: set[str] = set()
        self._ending = False

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hand on what can be recorded; of the rest each name is said once."""
        kept = recordable(values)
        for name in values.keys() - kept.keys() - self._refused:
            self._refused.add(name)
            kind = type(values[name]).__name__
            log.warning("%s of step %d is a %s: trackers record numbers, texts and pictures", name, step, kind)
        for queue in self.queues:
            queue.log(kept, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Let them end; ``wait`` waits for it."""
        self._ending = True
        if not summary:
            self.patience_s = min(_STOP_S, self.patience_s)
        for queue in self.queues:
            queue.end(summary)

    def wait(self) -> bool:
        """Wait until all have recorded everything, for so long as this end of the run leaves; whether they have."""
        if not self._ending:
            return True  # they were never told to end: another attempt has taken the run over
        until = time.monotonic() + self.patience_s
        waited = [queue.wait(until) for queue in self.queues]  # each of them: what it says is of its own
        return all(waited)


def _size_of(value: Value) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return _NUMBER_BYTES + (len(value) if isinstance(value, str) else 0)
