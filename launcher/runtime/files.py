"""Writing files so that a crash leaves the old content or the new one, never half of it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes, *, durable: bool = True, settled: bool = True) -> None:
    """Replace ``path`` by ``data``: written aside, fsynced, renamed over it, the folder fsynced (rename(2)).

    Without ``durable`` nothing is fsynced: a power failure may lose the file, a crash of ours cannot tear it. Without
    ``settled`` the folder is not: for a file behind which another one of the folder is written durably at once.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable and settled:
        sync_folder(path.parent)


def write_json(path: Path, value: Any, *, durable: bool = True, settled: bool = True) -> None:
    """``write_atomic`` of ``value`` as indented JSON; numbers that are not finite, which JSON has not, become null."""
    write_atomic(path, json_text(value).encode(), durable=durable, settled=settled)


def json_text(value: Any) -> str:
    """``value`` as ``write_json`` writes it."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line of JSON in a single write, and fsync it; a torn line before it is ended first."""
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written < len(line):  # write(2): the disk is full, or a limit is reached; the torn line is no record
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file that ``append_json_line`` wrote; a line torn by a crash is passed over."""
    if not path.exists():
        return []
    # As bytes: a line may be torn inside a character, and JSON text may hold what str.splitlines takes for an end.
    return [record for line in path.read_bytes().split(b"\n") if (record := _record(line)) is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def sync_folder(path: Path) -> None:
    """Make renames inside ``path`` durable (fsync of a directory, fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
