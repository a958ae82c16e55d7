"""What a run was started from: Python, packages, the code's git commit and its uncommitted changes."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from launcher.runtime.environment import python_and_packages

_NO_SECRETS = (":(exclude,glob)**/.env*", ":(exclude,glob)**/.env*/**")


def environment(cwd: Path) -> dict[str, Any]:
    """A record for ``plan.json`` of what runs started in the folder ``cwd`` use.

    JSON values only, and no environment variables: they may hold secrets. ``git_sha`` is the commit of the worktree
    around ``cwd``, else of the one that this package stands in; ``diff_id`` a hash of ``uncommitted(cwd)``. None where
    there is no git, or no change.
    """
    sha, diff = _worktree(cwd)
    return python_and_packages() | {
        "git_sha": sha,
        "diff_id": hashlib.sha256(diff).hexdigest()[:12] if diff else None,
    }


def uncommitted(cwd: Path) -> bytes:
    """What is changed in that worktree since its commit, as ``git diff`` tells it; empty where nothing is."""
    return _worktree(cwd)[1]


@cache
def _worktree(cwd: Path) -> tuple[str | None, bytes]:
    """Commit and uncommitted changes."""
    for folder in (cwd, Path(__file__).parent):
        if sha := _ask_git(folder, "rev-parse", "HEAD"):
            return sha.decode().strip(), _ask_git(folder, "diff", "--binary", "HEAD", "--", ".", *_NO_SECRETS) or b""
    return None, b""


def _ask_git(folder: Path, *words: str) -> bytes | None:
    try:
        answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
