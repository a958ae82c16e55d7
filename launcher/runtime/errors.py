"""How a command ends: exit codes, the errors that are the user's to mend, and the one place that prints them."""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn

from launcher.runtime.redaction import scrubbed


class ExitCode(IntEnum):
    """Exit status of every command of this project."""

    DONE = 0
    USER_ERROR = 1
    """The user can mend it: one line on stderr, no traceback."""
    USAGE = 2
    """The command line could not be read (argparse's code)."""
    TRAINING_FAILED = 3
    """The training itself went wrong: non-finite loss, no progress."""
    BUG = 70
    """Ours: a traceback follows (EX_SOFTWARE of sysexits.h)."""
    STOPPED_SAVED = 75
    """Stopped on request with everything saved (EX_TEMPFAIL of sysexits.h)."""
    STOPPED_NOT_SAVED = 76
    """Stopped on request; what came after the last checkpoint is lost."""


class UserError(Exception):
    """Something the user can mend. The message is one line: the thing, its value, what is allowed, what to do."""

    code: ExitCode = ExitCode.USER_ERROR


class TrainingFailed(UserError):
    """The training diverged or stood still; the message says at which step and what to try."""

    code = ExitCode.TRAINING_FAILED


class Stopped(UserError):
    """This process was asked to stop while there was nothing that a save would keep."""

    code = ExitCode.STOPPED_NOT_SAVED

    def __init__(self) -> None:
        super().__init__("stopped on request before there was anything to save")


class InUse(UserError):
    """Another process trains the run; what it does is what was asked for."""


class EndsWith(UserError):
    """Ends with a code that only whoever raises it knows."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


class RunsNotDone(EndsWith):
    """Some of several runs failed or were stopped; the code is that of the worst."""


def say_error(error: UserError) -> None:
    """Print ``error`` on stderr as one line."""
    print("error: " + scrubbed(" ".join(str(error).split())), file=sys.stderr, flush=True)


TRACKER_THREAD = "tracker "
"""How the names of threads begin that feed trackers (``launcher.runtime.trackers.queued``)."""


def leave(code: int) -> NoReturn:
    """End this process with ``code``, without the goodbyes of libraries where a tracker is still at it.

    It was waited for as long as may be; W&B's goodbye waits for its own process without end (``atexit``).
    """
    sys.stdout.flush(), sys.stderr.flush()
    if any(thread.name.startswith(TRACKER_THREAD) for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


TASK_RAISED = "(raised by the task)"
"""A note on an exception that came out of what the run called."""
_OURS = "this is a bug in seemore-launcher: please report it with the lines above"
_WHOSE_TASK = "the task raised this; if it is not your own one, please report it with the lines above"


def guarded(command: Callable[[], int]) -> int:
    """Run ``command`` and turn what it raises into the exit code and the words of this project.

    A ``UserError`` becomes one line; anything else is our bug and keeps its traceback.
    """
    try:
        return command()
    except UserError as error:
        say_error(error)
        return error.code
    except BrokenPipeError:  # `… | head` closed the pipe; nobody is left to tell
        sys.stderr.close()
        return ExitCode.DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.STOPPED_NOT_SAVED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename2 or error.filename  # of a copy: where it goes
            where = f"{where}: " if where else ""
            say_error(UserError(f"{where}{error.strerror}; make room, then the same command goes on"))
            return ExitCode.USER_ERROR
        if isinstance(error, FileNotFoundError) and error.filename is None:  # os.getcwd()
            say_error(UserError("the folder in which this command was typed is gone; go to another one"))
            return ExitCode.USER_ERROR
        print(scrubbed(traceback.format_exc()), end="", file=sys.stderr)
        print(_WHOSE_TASK if TASK_RAISED in getattr(error, "__notes__", ()) else _OURS, file=sys.stderr)
        return ExitCode.BUG
