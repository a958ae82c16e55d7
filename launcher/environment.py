"""What a run was started from: Python, packages, the code's git commit and its uncommitted changes."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from launcher.runtime.environment import python_and_packages


def environment(*folders: Path) -> dict[str, Any]:
    """A record for ``plan.json`` of what runs the code, which stands in the first of ``folders`` that has a commit.

    JSON values only, and no environment variables: they may hold secrets.
    """
    found = [_git(folder) for folder in folders]
    return python_and_packages() | next((git for git in found if git["git_sha"]), found[-1])


@cache
def _git(code: Path) -> dict[str, Any]:
    """Commit of the worktree around ``code``, and a hash of what is changed in it; None where there is no git."""
    sha = _ask_git(code, "rev-parse", "HEAD")
    diff = _ask_git(code, "diff", "HEAD") if sha else None
    return {
        "git_sha": sha.decode().strip() if sha else None,
        "diff_id": hashlib.sha256(diff).hexdigest()[:12] if diff else None,
    }


def _ask_git(code: Path, *words: str) -> bytes | None:
    try:
        answer = subprocess.run(["git", "-C", str(code), *words], capture_output=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
