"""The members that one worker runs: claimed one by one, forked, looked after, given back when the worker must stop."""

from __future__ import annotations

import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from launcher.runtime.errors import ExitCode, InUse, UserError
from launcher.runtime.pack.child import Child
from launcher.runtime.pack.preload import preload, preload_too
from launcher.runtime.plan import Plan
from launcher.runtime.policy import NEVER, STOPPED, close_status, settle
from launcher.runtime.signals import StopFlag

P = ParamSpec("P")
T = TypeVar("T")
_BUSY = 80
"""A member's exit code: another process trains the run."""
_BUSY_PAUSE_S = 0.5
_BUSY_MOST_S = 30.0
"""How long a run that another process trains is tried again: that may be a dying worker's, gone in seconds."""
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Claim:
    """A member that this worker runs."""

    entry: str
    plan: Plan


class Unreadable(UserError):
    """An entry of which nobody can tell what it is to run; it has been ended."""


class Source(Protocol):
    """Where a worker's members come from, and where it says what became of them."""

    def claim(self, leave: frozenset[str]) -> Claim | None:
        """A member to run, but none of the entries in ``leave``; None: there is none now.

        Raises:
            Unreadable: one cannot be run; others can.
        """

    def give_back(self, claim: Claim) -> None:
        """It is to be run again, by whomever."""

    def end(self, claim: Claim, code: int) -> None:
        """It need not be run any more; ``code`` is what its process ended with."""

    def is_cancelled(self, claim: Claim) -> bool:
        """Whether it is to be stopped for good."""


Run = Callable[[Claim, StopFlag, str | None], int]
"""Runs a member in its own process, on the GPU of that name if there is one; returns its exit code."""


@dataclass
class _Running:
    claim: Claim
    child: Child
    slot: int
    cancelled: bool = False


class Crew:
    """A worker's members; at most ``beside`` at a time, each with its share of the GPUs."""

    def __init__(
        self, source: Source, run: Run, stop: StopFlag, *, job: str, restarts: int, beside: int, gpus: Sequence[str]
    ) -> None:
        """``job`` and ``restarts`` name this start of the worker; ``gpus`` are those that it sees."""
        self._source, self._run, self._stop = source, run, stop
        self._job, self._restarts, self._beside, self._gpus = job, restarts, beside, gpus
        self._running: list[_Running] = []
        self._busy: dict[str, tuple[float, float]] = {}
        """When an entry was found in use first, and when it is tried next."""
        self._failed = self._unsaved = 0
        self._told = self._warm = False

    def work(self, began: Callable[[], None]) -> int:
        """Run members until there is none or a stop was asked for; returns the exit code that says most.

        Args:
            began: called when the first member is about to begin.
        """
        try:
            while True:
                while not self._stop and len(self._running) < self._beside and (claim := self._next()):
                    self._begin(claim, began)
                if not self._running and (self._stop or not self._busy):
                    break
                self._wait()
                self._look_after()
        finally:
            for running in self._running:  # a second Ctrl-C, or a bug of ours: nothing is left behind
                running.child.signal(signal.SIGKILL)
                running.child.reap()
                self._source.give_back(running.claim)
        if self._stop:
            return ExitCode.STOPPED_NOT_SAVED if self._unsaved else ExitCode.STOPPED_SAVED
        return ExitCode.TRAINING_FAILED if self._failed else ExitCode.DONE

    def _next(self) -> Claim | None:
        now = time.monotonic()
        leave = frozenset(entry for entry, (_, due) in self._busy.items() if due > now)
        while True:
            try:
                claim = self._source.claim(leave)
            except Unreadable as error:
                self._failed += 1
                _say(f"error: {error}")
                continue
            if claim is None:  # of those that were due each is another worker's by now, or over
                self._busy = {entry: times for entry, times in self._busy.items() if entry in leave}
                return None
            if not self._source.is_cancelled(claim):
                return claim
            self._busy.pop(claim.entry, None)
            self._tried(claim, self._cancelled, claim)  # since it was given back
            self._source.end(claim, ExitCode.STOPPED_SAVED)

    def _begin(self, claim: Claim, began: Callable[[], None]) -> None:
        try:
            if not self._warm:
                with suppress(UserError):  # it tells itself what is wrong with it, and no other need suffer
                    preload(claim.plan)
                self._warm = True
                began()
            if self._stop:  # asked while torch was being imported
                self._source.give_back(claim)
            else:
                self._start(claim)
        except BaseException:
            self._source.give_back(claim)
            raise

    def _start(self, claim: Claim) -> None:
        slots = {running.slot for running in self._running}
        slot = next(i for i in range(self._beside) if i not in slots)
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        self._running.append(_Running(claim, Child(lambda stop: _run(self._run, claim, stop, gpu)), slot))

    def _wait(self) -> None:
        """Until a member ends, or something may be due."""
        with selectors.DefaultSelector() as selector:
            for running in self._running:
                selector.register(running.child.descriptor, selectors.EVENT_READ)
            ended = selector.select(timeout=0 if self._stop and not self._told else _LOOK_EVERY_S)
        over = {key.fd for key, _ in ended}
        for running in [r for r in self._running if r.child.descriptor in over]:
            self._running.remove(running)
            self._end(running, running.child.reap())

    def _look_after(self) -> None:
        if self._stop and not self._told:
            self._told = True
            for running in self._running:
                running.child.signal(signal.SIGTERM)
        for running in self._running:
            if not running.cancelled and self._source.is_cancelled(running.claim):
                running.cancelled = True
                running.child.signal(signal.SIGTERM)

    def _end(self, running: _Running, code: int) -> None:
        claim = running.claim
        if code == _BUSY:
            self._put_off(claim)
            return
        self._busy.pop(claim.entry, None)
        code, again = self._tried(claim, self._settled, running, code) or (code, False)
        self._source.give_back(claim) if again else self._source.end(claim, code)
        preload_too(running.child.imported)

    def _tried(self, claim: Claim, work: Callable[P, T], *args: P.args, **how: P.kwargs) -> T | None:
        """``work`` on the files of one run; None: they are beyond use, which is that run's failure and no other's."""
        try:
            return work(*args, **how)
        except (UserError, OSError) as error:
            self._failed += 1
            _say(f"error: {claim.plan.run_id}: {error}")
            return None

    def _settled(self, running: _Running, code: int) -> tuple[int, bool]:
        """Write down what became of a member, and say so; its exit code, and whether it is run again."""
        claim, rundir, again = running.claim, running.claim.plan.rundir, False
        rundir.path.mkdir(parents=True, exist_ok=True)  # its process may not even have come to that
        if rundir.state() == "COMPLETED":
            code = ExitCode.DONE  # whatever befell its process after that
        elif code != ExitCode.DONE and (running.cancelled or self._source.is_cancelled(claim)):
            self._cancelled(claim)
        elif code != ExitCode.DONE:
            close_status(rundir, [code if code <= 128 else 128 - code], code, running.child.began)
            if code in STOPPED and self._stop:  # signals of Slurm's reach members too, before they are told
                again = True
                self._unsaved += code != ExitCode.STOPPED_SAVED
            elif code not in NEVER:
                code, again = settle(claim.plan, self._job, code, self._restarts)
            self._failed += not again and code not in STOPPED
        said = "; waits to go on" if again else ""
        _say(f"{rundir.state()}: {claim.plan.run_id} ({time.time() - running.child.began:.1f} s){said}")
        return code, again

    def _cancelled(self, claim: Claim) -> None:
        claim.plan.rundir.path.mkdir(parents=True, exist_ok=True)
        if claim.plan.rundir.state() != "COMPLETED":  # its worker may have died before it could say so
            claim.plan.rundir.say_state("CANCELLED", "cancelled; the same command goes on")

    def _put_off(self, claim: Claim) -> None:
        """Another process trains the run: one that is dying, or another command's, whose result will do."""
        now = time.monotonic()
        since = self._busy.get(claim.entry, (now, now))[0]
        if now - since > _BUSY_MOST_S:
            del self._busy[claim.entry]
            self._source.end(claim, ExitCode.DONE)
            _say(f"left to the other process that trains it: {claim.plan.rundir.path}")
            return
        self._busy[claim.entry] = since, now + _BUSY_PAUSE_S
        self._source.give_back(claim)


def _run(run: Run, claim: Claim, stop: StopFlag, gpu: str | None) -> int:
    try:
        return run(claim, stop, gpu)
    except InUse:
        return _BUSY


def _say(text: str) -> None:
    with suppress(OSError):  # nobody need be there to read it
        print(text, file=sys.stderr, flush=True)
