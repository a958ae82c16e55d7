"""Being asked to stop: handlers that set a flag and do nothing else."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What asks a process to save and stop."""


class StopFlag:
    """Set by SIGINT (Ctrl-C), SIGTERM or SIGUSR2; the training loop reads it between steps.

    A second SIGINT raises ``KeyboardInterrupt``: whoever presses Ctrl-C twice does not want to wait for a save.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason: str | None = None
        """Why the run is to end for good, where somebody said so (``end``)."""
        self.patient = True
        """Whether a signal waits for the end of a step. While nothing is there to be saved, it ends things at once."""
        self._interrupted = False
        self._owner = os.getpid()

    def install(self, hang_up: bool = False) -> None:
        """Take over the stop signals of this process (main thread only, signal(7)).

        Args:
            hang_up: the end of the terminal (SIGHUP) too, unless it is ignored: ``nohup`` means to go on.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        if hang_up and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def ignore(self) -> None:
        """Ignore stop signals from now on: all is said.

        Python puts back their default as it ends, and a signal in these last milliseconds (srun sends one to the ranks
        that end last) would kill this process and be taken for the job's failure.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def end(self, reason: str) -> None:
        """Have the run stop after this step and not go on: it is CANCELLED for ``reason``."""
        self.reason = reason

    @property
    def word(self) -> float:
        """What a rank tells the others: 0 nothing, 1 to stop, 2 to stop for good."""
        return 2.0 if self.reason is not None else float(bool(self))

    def __bool__(self) -> bool:
        return self.signal is not None or self.reason is not None

    def wait(self, seconds: float) -> bool:
        """Wait for a stop signal, at most so long; whether there was one."""
        until = time.monotonic() + seconds
        while not self and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))  # a handler alone does not end a sleep (PEP 475)
        return bool(self)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked child (a data worker) has inherited the handler: not its business
            return
        if number == signal.SIGINT or not self.patient:
            if self._interrupted or not self.patient:
                raise KeyboardInterrupt
            self._interrupted = True
        self.signal = signal.Signals(number)
