"""A member's process: forked, told to end with its parent, and gone without the parent's goodbyes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import islice

from launcher.runtime.errors import ExitCode, guarded
from launcher.runtime.parent import end_with_parent
from launcher.runtime.signals import STOP_SIGNALS, StopFlag


class Child:
    """A running child process."""

    def __init__(self, work: Callable[[StopFlag], int]) -> None:
        """Fork, and run ``work`` in the child; its exit code is what ``work`` returns."""
        self.began = time.time()
        self.imported: list[str] = []
        """Modules that it had to import by itself; known once it is reaped."""
        self._learned = os.memfd_create("imports")
        sys.stdout.flush(), sys.stderr.flush()
        # Until the child has its own handlers a signal waits: the parent's would take it for the parent's business.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, self._learned, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.descriptor = os.pidfd_open(self.pid)
        """Readable once it has ended (pidfd_open(2))."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; it is not reaped yet, so the number is still its own."""
        os.kill(self.pid, number)

    def reap(self) -> int:
        """Its exit code, 128 + the signal that killed it; waits for its end."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        with os.fdopen(self._learned, "rb") as file:
            file.seek(0)
            said = file.read()
        self.imported = json.loads(said) if said else []
        return code if code >= 0 else 128 - code


def _run(work: Callable[[StopFlag], int], learned: int, parent: int) -> None:
    """In the child; never returns."""
    code = int(ExitCode.BUG)
    try:
        before = len(sys.modules)
        end_with_parent()
        stop = StopFlag()
        stop.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if os.getppid() != parent:  # it was gone before the kernel was asked to tell
            os.kill(os.getpid(), signal.SIGTERM)
        code = guarded(lambda: work(stop))
        stop.ignore()
        os.write(learned, json.dumps(_newest(len(sys.modules) - before)).encode())
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(code)  # what the parent has open, and its atexit, are not the child's to end


def _newest(count: int) -> list[str]:
    """The last ``count`` imported modules. No other name is touched: after a fork that would copy its page."""
    return list(islice(reversed(sys.modules), max(0, count)))[::-1]
