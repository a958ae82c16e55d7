"""How a command of this package ends: exit codes, the error that the user can mend, the one place that prints it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of ``python -m slurm``; the numbers are those of the project's other commands."""

    DONE = 0
    USER_ERROR = 1
    """The user can mend it: one line on stderr, no traceback."""
    USAGE = 2
    """The command line could not be read (argparse's code)."""
    BUG = 70
    """Ours: a traceback follows (EX_SOFTWARE of sysexits.h)."""


class ClusterError(Exception):
    """Something the user can mend, or a daemon that would not do its part: the thing, its value, what to do."""


def guarded(command: Callable[[], None]) -> int:
    """Run ``command`` and turn what it raises into an exit code: a line for a ``ClusterError``, else a traceback.

    The lines of a log that a message quotes stay lines of their own, indented, after the one that says what happened.
    """
    try:
        command()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitCode.USER_ERROR
    except BrokenPipeError:  # `… | head` closed the pipe; nobody is left to tell
        sys.stderr.close()
        return ExitCode.DONE
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return ExitCode.USER_ERROR
    except Exception:
        traceback.print_exc()
        print("this is a bug in seemore-launcher: please report it with the lines above", file=sys.stderr)
        return ExitCode.BUG
    return ExitCode.DONE
