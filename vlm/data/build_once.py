"""Folders of a cache: built by one process, aside, and renamed into place, so that readers see all of it or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from launcher.runtime.errors import UserError


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Have ``build(aside)`` make ``folder`` unless it is there; of several processes one builds and the others wait.

    Raises:
        UserError: the folder cannot be written (permissions, full disk).
    """
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _build(folder, build)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cache {folder.parent}: {reason}; choose another folder with data.cache_dir=…") from error


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        build(aside)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
