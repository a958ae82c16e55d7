"""The session of a drill: a run that ends after a few steps, and that waits at some of them to be interrupted.

The task does not know: it trains by its own config, and is told to stop as by a preemption. What ``launcher drill``
has to know stands in ``attempts.jsonl``: ``first_step`` once in each attempt, ``held`` once at each step of waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from launcher.runtime.progress import FIRST_STEP, HELD
from launcher.runtime.session import Session
from launcher.runtime.settings import DrillSettings

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
"""While it waits, how often it shows that it lives."""


class DrillSession(Session):
    """A session that obeys ``drill.*`` too."""

    def __init__(self, *args: Any, drill: DrillSettings, attempt: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drill, self._attempt = drill, attempt
        self._offered = self.step
        """The last step whose state was offered or restored: the one that is computed now comes after it."""
        events = self.rundir.attempt_events() if self.world.is_main else []
        self._held = {event.get("step") for event in events if event.get("event") == HELD}
        self._has_begun = False

    def should_stop(self) -> bool:
        """As ``Session.should_stop``; and after ``drill.stop_after`` steps the run is complete."""
        if self._agreement is None:
            return super().should_stop()
        step = max(self._offered + 1, self.step)  # a task that saves nothing tells its steps by its logs
        if self.world.is_main:
            self._tell(step)
        super().should_stop()
        if self._drill.stop_after is not None and step >= self._drill.stop_after:
            self.stopping = self.complete = True  # every rank has counted the same steps: nothing to agree on
        return self.stopping

    def save(self, state: Mapping[str, Any], metric: float | None = None, *, due: bool = False) -> None:
        """As ``Session.save``."""
        super().save(state, metric, due=due)
        self._offered = self.step

    def _tell(self, step: int) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._event(FIRST_STEP, step)
        for at in self._drill.hold_at:
            if step >= at and at not in self._held and not self._stop:
                self._held.add(at)
                self._event(HELD, at, done=step)
                self._hold(step)

    def _hold(self, step: int) -> None:
        """Until this rank is asked to stop, or killed; the others wait for it in their next step."""
        until = time.monotonic() + self._drill.hold_s
        while not self._stop.wait(_LOOK_EVERY_S):
            self._alive(f"held after step {step}", _LOOK_EVERY_S)
            if time.monotonic() > until:
                log.warning("nobody interrupted the run within %.0f s of step %d: it goes on", self._drill.hold_s, step)
                return

    def _event(self, event: str, step: int, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        job_id = self.world.job_id
        self.rundir.add_attempt_event(event=event, attempt=self._attempt, job_id=job_id, step=step, time=now, **values)
