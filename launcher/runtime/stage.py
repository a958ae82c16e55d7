"""Staging: a copy of data on the node's own disk, made once a node and shared by all of a user's processes there.

A copy is named by where its source lies and by the sizes and times of its files. It is made aside under a lock, checked
and renamed into place, so that who looks sees all of it or nothing.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash
from filelock import FileLock

from launcher.runtime.polling import Poll, held, keep_going

log = logging.getLogger(__name__)

_CHUNK = 16 << 20
"""Bytes between two polls."""
_ROOM = 1.05
"""Free bytes asked for, as a multiple of what is to be copied."""


def stage(source: Path, folder: Path, poll: Poll = keep_going) -> Path:
    """A copy of ``source``, a file or a folder, below ``folder`` on this node's own disk.

    Of several processes on a node one copies and the others wait. Where no copy can be made (the disk is full, the
    folder is another's) that is said in the log, and ``source`` itself is what they use.

    Args:
        poll: called while copying and while waiting; whatever it raises leaves nothing behind.

    Returns:
        The copy, or ``source``.
    """
    try:
        files = _listed(source)
        place = _own(folder)
        key = _key(source, files)
        copy = place / key / source.name
        if not _is_whole(copy, files):
            with held(FileLock(place / f"{key}.lock"), poll):
                if not _is_whole(copy, files):
                    _copy(source, copy, files, poll)
        return copy
    except OSError as error:
        log.warning("%s: is not staged in %s (%s); read where it is", source, folder, error.strerror or error)
        return source


def _listed(source: Path) -> dict[str, os.stat_result]:
    """The files of ``source`` by their names in it; a file alone has the name ``.``."""
    if not source.is_dir():
        return {".": source.stat()}
    paths = [Path(folder) / name for folder, _, names in os.walk(source) for name in names]
    return {str(path.relative_to(source)): path.stat() for path in sorted(paths)}


def _own(folder: Path) -> Path:
    """This user's place in ``folder``, which others may share."""
    place = folder / f"seemore-{os.getuid()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{place} is another user's")
    return place


def _key(source: Path, files: Mapping[str, os.stat_result]) -> str:
    versions = [(name, found.st_size, found.st_mtime_ns) for name, found in files.items()]
    return hashlib.sha256(repr((str(source.resolve()), versions)).encode()).hexdigest()[:24]


def _is_whole(copy: Path, files: Mapping[str, os.stat_result]) -> bool:
    try:
        return all((copy / name).stat().st_size == found.st_size for name, found in files.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _copy(source: Path, copy: Path, files: Mapping[str, os.stat_result], poll: Poll) -> None:
    """Make ``copy``; the caller holds its lock."""
    n_bytes = sum(found.st_size for found in files.values())
    disk = os.statvfs(copy.parent.parent)
    if disk.f_bavail * disk.f_frsize < _ROOM * n_bytes:
        raise OSError(errno.ENOSPC, f"{n_bytes / 1e6:.1f} MB do not fit on that disk")
    aside = copy.parent.with_name(f"{copy.parent.name}.unfinished")
    for left in (aside, copy.parent):  # of one that was killed; of a disk that lost what was written
        shutil.rmtree(left, ignore_errors=True)
    log.info("staging %s (%.1f MB) in %s, once for this node", source, n_bytes / 1e6, copy.parent)
    try:
        for name in files:
            target = aside / copy.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(source / name, target, poll)
        aside.rename(copy.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy_file(source: Path, target: Path, poll: Poll) -> None:
    """Copy one file and read the copy back: a disk that lies is found out here, not in a training curve."""
    written = xxhash.xxh3_128()
    with source.open("rb") as given, target.open("xb") as file:
        for chunk in _chunks(given.fileno(), poll):
            written.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    found = xxhash.xxh3_128()
    with target.open("rb") as file:
        for chunk in _chunks(file.fileno(), poll):
            found.update(chunk)
    if found.digest() != written.digest():
        raise OSError(errno.EIO, f"the copy of {source.name} differs from it")


def _chunks(descriptor: int, poll: Poll) -> Iterator[bytes]:
    while True:
        poll()
        if not (chunk := os.read(descriptor, _CHUNK)):
            return
        yield chunk
