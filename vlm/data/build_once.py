"""Folders of a cache: built by one process, aside, and renamed into place, so that readers see all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from launcher.runtime.errors import UserError
from launcher.runtime.polling import Poll, held, keep_going

T = TypeVar("T")


def polled(items: Iterable[T], poll: Poll, every: int = 1000) -> Iterator[T]:
    """``items``, with a poll before each ``every`` of them."""
    for number, item in enumerate(items):
        if number % every == 0:
            poll()
        yield item


def build_once(folder: Path, build: Callable[[Path], None], poll: Poll = keep_going) -> None:
    """Have ``build(aside)`` make ``folder`` unless it is there; of several processes one builds and the others wait.

    Args:
        poll: called while waiting; whatever it or ``build`` raises leaves no half of a folder behind.

    Raises:
        UserError: the folder cannot be written (permissions, full disk).
    """
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held(FileLock(folder.with_suffix(".lock")), poll):
            if not folder.exists():
                _build(folder, build)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cache {folder.parent}: {reason}; choose another folder with data.cache_dir=…") from error


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # left by a builder that was killed: the lock is ours
    aside.mkdir()
    try:
        build(aside)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def damaged(folder: Path, error: Exception) -> UserError:
    """What to say of a finished folder that cannot be read: a power cut, or a hand."""
    return UserError(f"cache {folder}: is damaged ({error}); remove this folder and it is built again")
