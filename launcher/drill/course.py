"""The course of a drill: both copies are started, one is interrupted where it waits for it, and all is looked after."""

from __future__ import annotations

import sys
import time

from launcher.drill.account import KILLED, WARNED, Interruption, Log
from launcher.drill.copies import LEAST_STEPS, Copies, Copy
from launcher.drill.places import Place
from launcher.requeue import NOT_HERE
from launcher.runtime.errors import Stopped, UserError
from launcher.runtime.progress import FIRST_STEP, HELD
from launcher.runtime.signals import StopFlag

_LOOK_EVERY_S = 0.2
"""At the files of the copies."""
_ASK_EVERY_S = 2.0
"""The queue."""
_TRIES = 4
"""Most times that a copy is started by us."""


class Course:
    """One drill, from the first submission to the end of both copies."""

    def __init__(self, copies: Copies, place: Place, *, patience_s: float) -> None:
        self._copies, self._place, self._patience_s = copies, place, patience_s
        self.logs = {copy.name: Log([], [], []) for copy in copies.both}
        self._waiting_since: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._asked_at = float("-inf")

    def run(self, stop: StopFlag) -> None:
        """Until both are COMPLETED; whatever happens, nothing of them is left in the queue.

        Raises:
            UserError: a copy failed, waited longer than the patience, or ended before it could be interrupted.
            Stopped: by the user.
        """
        whole, interrupted = self._copies.both
        try:
            self._start(whole)
            if self._place.at_once:
                self._start(interrupted)
            self._watch(whole, stop)
            if not self._place.at_once:
                self._start(interrupted)
            self._watch(interrupted, stop)
        finally:
            self._place.end(self._copies)

    def _watch(self, last: Copy, stop: StopFlag) -> None:
        """Look after what was started until ``last`` is done."""
        while not self._is_done(last):
            if stop.wait(_LOOK_EVERY_S):
                raise Stopped
            begun = [copy for copy in self._copies.both if copy.name in self._tries and not self._is_done(copy)]
            for copy in begun:
                self._note_starts(copy)
                self._interrupt(copy)
            if time.monotonic() - self._asked_at >= _ASK_EVERY_S:
                for copy in begun:
                    self._ask(copy)
                self._asked_at = time.monotonic()
        self._note_starts(last)
        self._require_long_enough(last)

    def _require_long_enough(self, done: Copy) -> None:
        """See that there are enough steps in the task: of the copy that is done first it is known early."""
        wanted = self._copies.interrupted.hold_at
        step = int((done.rundir.read(done.rundir.summary) or {}).get("step") or 0)
        if step < wanted[-1] or len(self.logs[done.name].interruptions) < len(done.hold_at):
            how = f"drill fewer: --steps {step}" if step >= LEAST_STEPS else "it is too short to be drilled"
            raise UserError(
                f"the task ended after step {step}, before it could be interrupted {len(wanted)} times (at steps "
                f"{', '.join(map(str, wanted))}); {how}"
            )

    def _is_done(self, copy: Copy) -> bool:
        return copy.rundir.state() == "COMPLETED"

    def _start(self, copy: Copy) -> None:
        self._tries[copy.name] = self._tries.get(copy.name, 0) + 1
        if self._tries[copy.name] > _TRIES:
            raise self._failure(copy, "it does not go on")
        known_as = self._place.start(copy)
        if self._tries[copy.name] == 1:
            self.logs[copy.name].asked.append(time.time())
        self._waiting_since[copy.name] = time.monotonic()
        self._gone[copy.name] = 0
        say(f"{copy.name} copy: {known_as}")

    def _note_starts(self, copy: Copy) -> None:
        """Of each attempt that has done its first step: when its job began."""
        log = self.logs[copy.name]
        while len(log.began) < self._count(copy, FIRST_STEP):
            log.began.append(self._place.began(copy))
            self._waiting_since.pop(copy.name, None)

    def _interrupt(self, copy: Copy) -> None:
        """As soon as it waits for that."""
        log = self.logs[copy.name]
        done = len(log.interruptions)
        if self._count(copy, HELD) <= done or len(log.began) <= done:
            return
        kind = (WARNED, KILLED)[done]
        log.interruptions.append(Interruption(kind, time.time()))
        say(f"{copy.name} copy: {kind} at step {copy.hold_at[done]}")
        (self._place.warn if kind == WARNED else self._place.kill)(copy)
        self._waiting_since[copy.name] = time.monotonic()

    def _count(self, copy: Copy, event: str) -> int:
        return sum(one.get("event") == event for one in copy.rundir.attempt_events())

    def _ask(self, copy: Copy) -> None:
        """Whether it is still in the queue, and how long it has waited there."""
        if self._place.lives(copy):
            self._gone[copy.name] = 0
            since = self._waiting_since.get(copy.name)
            late = since is not None and time.monotonic() - since > self._patience_s
            if late and (why := self._place.waits(copy)) is not None:
                raise UserError(
                    f"the {copy.name} copy did not start within {self._patience_s:.0f} s ({why}); its jobs were "
                    "cancelled: drill when the cluster has room, or with a longer --patience"
                )
            return
        self._gone[copy.name] += 1
        if self._gone[copy.name] > 1 and not self._is_done(copy):  # the second look: files may come late
            self._go_on(copy)

    def _go_on(self, copy: Copy) -> None:
        """Its job is gone: where that was our doing, submit it again as ``launcher resume`` would."""
        status = copy.rundir.read_status()
        reason = str(status.get("reason") or "")
        ours = len(self.logs[copy.name].interruptions) >= max(1, self._count(copy, FIRST_STEP))
        if not ours or (status.get("state") == "FAILED" and NOT_HERE not in reason and self._place.at_once):
            raise self._failure(copy, reason or "it ended without a word")
        if NOT_HERE in reason and self._tries[copy.name] == 1:
            say("Slurm may not requeue jobs here: the copy is submitted again, as `python -m launcher resume` would")
        self._start(copy)

    def _failure(self, copy: Copy, reason: str) -> UserError:
        return UserError(
            f"the {copy.name} copy is {copy.rundir.state() or 'not there'}: {reason}; see {copy.rundir.path}"
        )


def say(text: str) -> None:
    """On stderr: stdout is for what was found."""
    print(text, file=sys.stderr, flush=True)
