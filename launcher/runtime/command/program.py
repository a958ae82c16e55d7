"""A program that runs beside this process: what it prints goes to the log, and it ends with this process."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from launcher.runtime.errors import UserError
from launcher.runtime.parent import end_with_parent

log = logging.getLogger(__name__)

_GRACE_S = 10.0
"""How long a program that is left behind may take to end before it is killed."""


def search_path(env: Mapping[str, str]) -> str:
    """PATH of a program: ``python`` is the Python that runs this, whether its environment was activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [env.get("PATH")])])


class Program:
    """A running program; leaving the block ends it."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start ``argv`` in the folder of this process.

        Raises:
            UserError: it cannot be started.
        """
        log.info("$ %s", shlex.join(argv))
        try:
            self._process = subprocess.Popen(
                argv, env={**env, "PATH": search_path(env)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip  # of its own session: Ctrl-C reaches this process alone, which forwards it
        except OSError as error:
            raise UserError(f"task.argv: {argv[0]} cannot be run: {error.strerror or error}") from None
        assert self._process.stdout is not None
        self._output = threading.Thread(target=_log_lines, args=(self._process.stdout,), daemon=True)
        self._output.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._signal_all(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self._signal_all(signal.SIGKILL)  # what it has started ends with it: it would hold GPUs, and write on
        self._process.wait()
        self._output.join(_GRACE_S)

    def _signal_all(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, minus the signal that killed it; None: it still runs after so long."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended does not matter."""
        self._process.send_signal(number)


def _log_lines(output: IO[bytes]) -> None:
    """Each line as a record of the log; of a progress bar what it ended with."""
    with output:
        for line in output:
            text = line.decode(errors="replace").rstrip()
            log.info("%s", text.rpartition("\r")[2])
