"""The hang watch of a rank: threads that see that training goes on and that this attempt may still go on.

The training thread says where it is with ``beat``; where nothing beats for too long, ``on_hang`` is called, which ends
the process (``launcher.runtime.hang_report``). Among several ranks the one that hangs need not be the one that is
found: its peers wait for it in a collective, beat no more either, and are ended by their own watch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from launcher.runtime.errors import ExitCode
from launcher.runtime.hang_report import end_now

log = logging.getLogger(__name__)

_LONGEST_PERIOD_S = 1.0
_TICKS_A_TIMEOUT = 10
_STOP_S = 5.0
"""How long ``stop`` waits for the threads: one that is stuck in a file system must not hold up the end of a run."""


@dataclass(frozen=True)
class Check:
    """Something that can take the right to go on from an attempt, asked again and again."""

    every_s: float
    """Seconds from the end of one call to the next."""
    call: Callable[[], str | None]
    """None, or why the attempt must end at once. What it raises is logged, and it is asked again."""


class Watchdog:
    """Watches one rank from threads of its own, from ``start`` (or ``with``) until ``stop``.

    The time in which the whole process stood still (SIGSTOP, ``scontrol suspend``, a laptop's lid) is nobody's hang:
    silence is added up over the watch's own ticks, and of a gap between two of them at most twice the period counts.
    """

    def __init__(
        self,
        timeout_s: float | None,
        *,
        who: str,
        on_hang: Callable[[str], None],
        on_lost: Callable[[str], None],
        checks: Sequence[Check] = (),
    ) -> None:
        """Nothing runs yet.

        Args:
            timeout_s: longest silence, in seconds; None: there is no longest.
            who: this rank as messages name it: ``rank 1 on n2``.
            on_hang: called once, from a thread of the watch, with what to tell. Should it raise, the process is ended
                all the same, with STOPPED_NOT_SAVED.
            on_lost: the same for the first reason that a check gives.
            checks: what else to ask. They have a thread of their own: one that is stuck hides no hang.
        """
        self._timeout_s, self._who = timeout_s, who
        self._on_hang, self._on_lost = on_hang, on_lost
        self._checks = tuple(checks)
        self._last = (time.monotonic(), "start")
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def beat(self, what: str) -> None:
        """There was progress; ``what`` says where: ``step 12``. Any thread may call it, in less than a microsecond."""
        self._last = (time.monotonic(), what)  # one store: the watch sees the whole of it or nothing

    def start(self) -> None:
        """Start to watch; the silence is counted from here."""
        self.beat(self._last[1])
        jobs: list[tuple[str, Callable[[], None]]] = []
        if self._timeout_s is not None:
            jobs.append(("hang watch", self._watch))
        if self._checks:
            jobs.append(("checks", self._ask))
        self._threads = [threading.Thread(target=job, name=name, daemon=True) for name, job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Watch no more. Calling it again does nothing."""
        self._over.set()
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(_STOP_S)

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        assert self._timeout_s is not None
        period = min(_LONGEST_PERIOD_S, self._timeout_s / _TICKS_A_TIMEOUT)
        seen, silent_s, tick = self._last, 0.0, time.monotonic()
        while not self._over.wait(period):
            before, tick = tick, time.monotonic()
            if self._last is not seen:
                seen, silent_s = self._last, 0.0
                continue
            silent_s += min(tick - before, 2 * period)
            if silent_s >= self._timeout_s:
                self._call(self._on_hang, f"{self._who} made no progress for {self._timeout_s:g} s (last: {seen[1]})")
                return

    def _ask(self) -> None:
        due = [time.monotonic() + check.every_s for check in self._checks]
        while not self._over.wait(max(0.0, min(due) - time.monotonic())):
            which = due.index(min(due))
            check = self._checks[which]
            reason = None
            try:
                reason = check.call()
            except Exception:
                log.warning("a check of this attempt failed; it is tried again in %g s", check.every_s, exc_info=True)
            if reason is not None:
                if not self._over.is_set():
                    self._call(self._on_lost, reason)
                return
            due[which] = time.monotonic() + check.every_s

    def _call(self, act: Callable[[str], None], message: str) -> None:
        try:
            act(message)
        except Exception:
            log.error("%s; what should have told and ended it failed", message, exc_info=True)
            end_now(ExitCode.STOPPED_NOT_SAVED)
