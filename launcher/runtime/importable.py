"""Whether a task's function can be called, asked before anything is queued.

``python -uP -m launcher.runtime.importable TARGET`` is started with the import path of a job: it says in one line what
is wrong, and ends with 1.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError, guarded
from launcher.runtime.task_config import resolve_name


def resolve_task(target: str) -> Callable[..., Any]:
    """The function that ``target`` (``package.module:function``) names, which takes the session.

    Raises:
        UserError: its module cannot be imported, has no such name, or it takes other arguments.
    """
    try:
        function: Callable[..., Any] = resolve_name(target)
    except UserError as error:
        raise UserError(f"task.target={error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        raise UserError(f"task.target={target!r}: cannot be imported: {said}") from None
    if not callable(function):
        raise UserError(f"task.target={target!r}: is no function but a {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a built-in one
        return function
    try:
        signature.bind(None)
    except TypeError:
        taken = f"it takes {signature}"
        raise UserError(f"task.target={target!r}: should take one argument, the session; {taken}") from None
    return function


def main() -> int:
    """The door; returns its exit code."""
    return guarded(_run)


def _run() -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.runtime.importable", description="Try to import a task.")
    parser.add_argument("target", metavar="TARGET", help="package.module:function")
    resolve_task(parser.parse_args().target)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
