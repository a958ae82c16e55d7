"""What a job is to run is there: the task's function can be imported from the copy of the code, the program exists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.runtime.command.program import search_path
from launcher.runtime.environment import python_and_packages
from launcher.runtime.errors import UserError
from launcher.runtime.importable import resolve_task
from launcher.runtime.plan import Plan
from launcher.submission.commit import Wanted
from launcher.submission.jobs import Job
from launcher.submission.snapshot import Snapshot

_MODULE = "launcher.runtime.importable"
_PATIENCE_S = 300.0
"""How long an import may take: a cold file system is slow."""


def require_runnable(wanted: Wanted, env: Mapping[str, str]) -> None:
    """See that what the jobs of ``wanted`` run is there, each thing once, before they are queued.

    An import is tried in a process of its own, with the import path that jobs will have. What has worked with the same
    files and packages is remembered below ``~/.cache/seemore``: it takes seconds, and most sweeps have the code of the
    one before. Where jobs have another Python, or lines of setup, a failure is only told.

    Args:
        env: of the jobs.

    Raises:
        UserError: a function or a program is not there, or the function does not take the session.
    """
    programs = {tuple(job.plan.argv[:2]): _has_this_python(job) for job in wanted.jobs if job.plan.argv is not None}
    for argv, has_this_python in programs.items():
        try:
            require_program(argv, wanted.snapshot, env)
        except UserError as error:
            _tell_or_raise(error, has_this_python or not argv)
    targets = {job.plan.target: _has_this_python(job) for job in wanted.jobs if job.plan.argv is None}
    marks = {target: _mark(target, wanted.snapshot, env) for target in targets}
    new = [target for target, mark in marks.items() if not mark.exists()]
    if not new or wanted.done_already():
        return
    for target in new:
        problem = _import(target, wanted.snapshot, env)
        if problem:
            _tell_or_raise(UserError(problem), targets[target])
        else:
            marks[target].parent.mkdir(parents=True, exist_ok=True)
            marks[target].touch()


def _tell_or_raise(error: UserError, has_this_python: bool) -> None:
    if has_this_python:
        raise error
    print(f"warning: {error}; jobs have a setup of their own and may do better", file=sys.stderr)


def _mark(target: str, snapshot: Snapshot, env: Mapping[str, str]) -> Path:
    """There once ``target`` could be imported from such a copy of the code with the packages of today."""
    words = json.dumps([target, snapshot.id, sys.executable, env.get("PYTHONPATH"), python_and_packages()])
    cache = Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "seemore" / "imported" / hashlib.sha256(words.encode()).hexdigest()[:24]


def _has_this_python(job: Job) -> bool:
    site = job.resources.site
    return (
        site.python is None and site.container.image is None and not site.setup and not job.resources.queue.get("setup")
    )


def require_here(plan: Plan, env: Mapping[str, str]) -> None:
    """The same for a run of this process: what it runs is imported, or looked for, now.

    Raises:
        UserError: as ``require_runnable``.
    """
    if plan.argv is None:
        resolve_task(plan.target)
    else:
        require_program(plan.argv, None, env)


def require_program(argv: Sequence[str], snapshot: Snapshot | None, env: Mapping[str, str]) -> None:
    """See that ``argv`` can be started in the folder where the command is typed, or, with ``snapshot``, in its copy.

    Raises:
        UserError: the program, or the script that a Python is given, is not there.
    """
    if not argv:
        raise UserError("task.argv=[]: should name a program and its arguments, e.g. task.argv=[python,train.py]")
    program = argv[0]
    if "/" in program:
        _require_file(program, snapshot)
        if not os.access(program, os.X_OK):
            raise UserError(f"task.argv: {program} may not be run; chmod +x {program}")
    elif shutil.which(program, path=search_path(env)) is None:
        raise UserError(f"task.argv: there is no program {program!r} on PATH; ./{program} is one of this folder")
    if Path(program).name.startswith("python") and len(argv) > 1 and not argv[1].startswith("-"):
        _require_file(argv[1], snapshot)


def _require_file(name: str, snapshot: Snapshot | None) -> None:
    path = Path.cwd() / name
    if not path.exists():
        raise UserError(f"task.argv: there is no file {name} in {Path.cwd()}")
    if snapshot is None or snapshot.worktree is None or not path.resolve().is_relative_to(snapshot.worktree):
        return
    inside = str(path.resolve().relative_to(snapshot.worktree))
    if not Path(name).is_absolute() and inside not in snapshot.copies and inside not in snapshot.links:
        raise UserError(f"task.argv: {name} is ignored by git, so that it is not in the copy of the code for jobs")


def _import(target: str, snapshot: Snapshot, env: Mapping[str, str]) -> str | None:
    """What is wrong with ``target`` in the copy of the code; None: nothing."""
    with tempfile.TemporaryDirectory(prefix="code-") as folder:
        copied = snapshot if snapshot.path.exists() else snapshot.at(Path(folder) / snapshot.id)
        copied.write()
        words = [sys.executable, "-uP", "-m", _MODULE, target]
        try:
            done = subprocess.run(
                words, env=copied.environment(env), cwd=copied.cwd, capture_output=True, text=True, errors="replace",
                timeout=_PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"task.target={target!r}: its import takes over {_PATIENCE_S:.0f} s"
    if done.returncode == 0:
        return None
    said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
    return said[-1] if said else f"task.target={target!r}: its import ended with exit code {done.returncode}"
