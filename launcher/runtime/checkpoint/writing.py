"""Writing a checkpoint: aside, with checksums, fsynced, then renamed into place. The rename is the commit."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from launcher.runtime.checkpoint.manifest import NAME, Manifest, xxh3
from launcher.runtime.files import sync_folder, write_atomic
from launcher.runtime.rundir import RunDir

_CHUNK = 8 << 20
"""Bytes that are checksummed and written in turn: what was just read is still in the processor's cache."""
_ROOM = 1.05
"""Free bytes asked for, as a multiple of what is to be written."""


def make_aside(rundir: RunDir, final: Path, n_bytes: int) -> Path:
    """An empty folder beside ``final``, to write in; what crashed saves left is removed.

    Raises:
        OSError: it cannot be made, or ``n_bytes`` do not fit on the disk: found out before it is full.
    """
    for left in rundir.list_unfinished():
        shutil.rmtree(left, ignore_errors=True)  # who was given up may still write there: the next save tries again
    aside = rundir.unfinished(final)
    aside.parent.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(aside.parent)
    if disk.f_bavail * disk.f_frsize < _ROOM * n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside.parent))
    aside.mkdir()
    return aside


def write_file(path: Path, data: memoryview) -> dict[str, Any]:
    """Write a new file and fsync it; returns its entry of the manifest.

    Raises:
        OSError: the disk is full, or fails.
    """
    digest = xxhash.xxh3_128()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if len(data) >= _CHUNK:
            _pass_page_cache(descriptor)
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            digest.update(chunk)
            _write(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"name": path.name, "bytes": len(data), "xxh3": digest.hexdigest()}


def link_or_write(path: Path, data: memoryview, twin: Path | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    """``write_file``; where ``twin`` has the same content, another name of that file (link(2)) instead.

    Args:
        twin: a file that was written and fsynced before.
        entry: its entry of a manifest.
    """
    if twin is not None and entry["bytes"] == len(data) and entry["xxh3"] == xxh3(data):
        with suppress(OSError):  # it is gone, or a file system without links: then it is written
            path.hardlink_to(twin)
            return dict(entry)
    return write_file(path, data)


def _pass_page_cache(descriptor: int) -> None:
    """Have the disk fetch what is written from our memory, where it can (O_DIRECT, open(2)).

    To copy it into the page cache would take as much of a processor as the copy that the training loop waited for.
    """
    with suppress(OSError):  # a file system that cannot
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)


def _write(descriptor: int, chunk: memoryview) -> None:
    """All of ``chunk``; what is too odd for the disk, as the end of a file is, goes through the page cache."""
    while chunk:
        try:
            chunk = chunk[os.write(descriptor, chunk) :]
        except OSError as error:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)


def as_json(values: Mapping[str, Any]) -> memoryview:
    """``values`` as a file of a checkpoint holds them."""
    return memoryview(json.dumps(values, separators=(",", ":")).encode())


def commit(rundir: RunDir, aside: Path, final: Path, manifest: Manifest) -> None:
    """Make what was written in ``aside`` the checkpoint ``final``, durably.

    Raises:
        OSError: the disk is full, or fails; ``final`` is then not there, or there and whole but not yet durable.
    """
    write_file(aside / NAME, memoryview(manifest.to_bytes()))
    sync_folder(aside)
    if final.exists():  # of this attempt, which could not make it durable
        remove(rundir, final)
    aside.rename(final)
    sync_folder(final.parent)
    if manifest.kind == "step":
        write_atomic(rundir.latest, final.name.encode(), durable=False)  # a hint: who resumes looks for himself


def remove(rundir: RunDir, checkpoint: Path) -> None:
    """Delete a checkpoint; whoever looks meanwhile sees all of it or nothing."""
    trash = rundir.unfinished(checkpoint)
    checkpoint.rename(trash)
    shutil.rmtree(trash)
