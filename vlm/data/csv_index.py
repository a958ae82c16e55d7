"""Where each record of a CSV file begins and ends: found once, kept on disk, then any row is one read away.

Memory stays flat: the file is scanned in blocks, the spans lie in a memory-mapped file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from launcher.runtime.errors import UserError
from launcher.runtime.polling import Poll, keep_going
from vlm.data.build_once import build_once, damaged, polled

_BLOCK = 4 << 20
_BOM = b"\xef\xbb\xbf"
_QUOTE, _NEWLINE = ord('"'), ord("\n")
MAX_FIELD = 32 << 20
"""Longest field that is read, in characters: a base64 picture of 24 MB."""
MAX_RECORD = MAX_FIELD + (1 << 20)
"""Longest record that is read, in bytes."""


@dataclass(frozen=True)
class CsvIndex:
    """An indexed CSV file. Rows count from 0 here; messages count from 1 behind the header."""

    path: Path
    digest: str
    """SHA-256 of the file's bytes."""
    header: list[str]
    spans: np.ndarray
    """``(rows, 2) int64``: first byte of each record and the one behind its last; blank lines have none."""
    version: tuple[int, ...]
    """What the file system says of the file that was indexed: size, times, inode."""

    def __len__(self) -> int:
        return len(self.spans)

    def require_columns(self, *names: str) -> None:
        """See that the header has ``names`` and that there is a row.

        Raises:
            UserError: a column or every row is missing.
        """
        for name in names:
            if name not in self.header:
                shown = ", ".join(repr(h) for h in self.header[:20])
                raise UserError(
                    f"{self.path}: has no column {name!r}; its columns are {shown} "
                    "(choose with data.image_column and data.caption_column)"
                )
        if not len(self):
            raise UserError(f"{self.path}: has a header but no rows")

    def fields(self, row: int) -> list[str]:
        """The fields of a row.

        Raises:
            ValueError: the bytes are no UTF-8 or no CSV record; the message says which.
        """
        start, end = (int(x) for x in self.spans[row])
        if end - start > MAX_RECORD:
            raise ValueError(f"is {end - start} bytes long, more than {MAX_RECORD}: perhaps a stray quote")
        return _record(os.pread(self._descriptor, end - start, start))

    def require_unchanged(self) -> None:
        """See that the file is still the one that was indexed: what is read from it is kept under its digest.

        Raises:
            UserError: it has been written since.
        """
        if _version(self.path) != self.version:
            raise UserError(f"{self.path}: was changed while it was read; start again when it is whole")

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def open_index(path: Path, cache_dir: Path, poll: Poll = keep_going) -> CsvIndex:
    """The index of ``path``, from ``cache_dir`` where the file has not changed since (path, size, times, inode).

    ``poll`` is called while it is built.

    Raises:
        UserError: there is no such file, it is empty, no CSV, or its quotes do not close.
    """
    version = _version(path)
    identity = repr((str(path.resolve()), version))
    folder = cache_dir / "index" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    build_once(folder, lambda aside: _build(path, version, aside, poll), poll)
    try:
        found = json.loads((folder / "index.json").read_text())
        size = (folder / "spans.i64").stat().st_size
        spans = np.memmap(folder / "spans.i64", np.int64, "r").reshape(-1, 2) if size else np.empty((0, 2), np.int64)
        if len(spans) != found["rows"]:
            raise ValueError(f"{len(spans)} rows, not {found['rows']}")
        return CsvIndex(path, found["digest"], found["header"], spans, version)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(folder, error) from None


def _version(path: Path) -> tuple[int, ...]:
    try:
        if path.is_dir():
            raise UserError(f"{path}: is no file")
        path.open("rb").close()  # may it be read?
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _build(path: Path, version: tuple[int, ...], folder: Path, poll: Poll) -> None:
    with path.open("rb") as file, (folder / "spans.i64").open("wb") as spans:
        digest, header = _scan(file, spans, path, poll)
        rows = spans.tell() // 16
    if _version(path) != version:
        raise UserError(f"{path}: was changed while it was read; start again when it is whole")
    (folder / "index.json").write_text(json.dumps({"digest": digest, "header": header, "rows": rows}))


def _scan(file: io.BufferedReader, spans: io.BufferedWriter, path: Path, poll: Poll) -> tuple[str, list[str]]:
    """Write the span of every record behind the header to ``spans``; returns the file's SHA-256 and the header.

    A newline ends a record if the number of quotes before it is even (RFC 4180: inner quotes are doubled).
    """
    digest = hashlib.sha256()
    header: list[str] | None = None
    position, record_start, quotes_before = 0, 0, 0
    while block := file.read(_BLOCK):
        poll()
        digest.update(block)
        buffer = np.frombuffer(block, np.uint8)
        if position == 0 and block.startswith(_BOM):
            record_start = len(_BOM)
        quotes = np.flatnonzero(buffer == _QUOTE)
        newlines = np.flatnonzero(buffer == _NEWLINE)
        even = (np.searchsorted(quotes, newlines) + quotes_before) % 2 == 0
        ends = newlines[even] + position + 1
        quotes_before += len(quotes)
        position += len(block)
        if len(ends):
            header = _write_spans(file, spans, record_start, ends, header, poll)
            record_start = int(ends[-1])
    if quotes_before % 2:
        row = spans.tell() // 16 + 1
        raise UserError(f"{path}: a quote that opens in row {row} or before is never closed; or the file is cut off")
    if record_start < position:  # no newline at the end
        header = _write_spans(file, spans, record_start, np.array([position]), header, poll)
    if header is None:
        raise UserError(f"{path}: is empty")
    return digest.hexdigest(), header


def _write_spans(
    file: io.BufferedReader,
    spans: io.BufferedWriter,
    start: int,
    ends: np.ndarray,
    header: list[str] | None,
    poll: Poll,
) -> list[str] | None:
    starts = np.concatenate([[start], ends[:-1]])
    for i in polled(np.flatnonzero(ends - starts <= 2), poll):  # "\n" or "\r\n": a blank line, or a very short record
        if not os.pread(file.fileno(), int(ends[i] - starts[i]), int(starts[i])).strip():
            starts[i] = ends[i]
    found = np.stack([starts, ends], axis=1)[starts < ends]
    if header is None and len(found):
        first, last = (int(x) for x in found[0])
        header = _header(os.pread(file.fileno(), min(last - first, MAX_FIELD), first), Path(file.name))
        found = found[1:]
    spans.write(found.astype(np.int64).tobytes())
    return header


def _header(record: bytes, path: Path) -> list[str]:
    try:
        return _record(record)
    except ValueError as error:
        raise UserError(f"{path}: the header cannot be read: {error}") from None


def _record(record: bytes) -> list[str]:
    csv.field_size_limit(MAX_FIELD)
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError as error:
        what = "a lone surrogate" if 0xED in record[error.start : error.start + 1] else "no UTF-8"
        raise ValueError(f"byte {error.start} of the row is {what}") from None
    try:
        found = [fields for fields in csv.reader(io.StringIO(text, newline=""), strict=True) if fields]
    except csv.Error as error:
        raise ValueError(f"no CSV record ({error})") from None
    if len(found) != 1:
        raise ValueError(
            f"no CSV record (it reads as {len(found)}, not one: a quote inside an unquoted field, "
            "or a line that ends with a carriage return alone)"
        )
    return found[0]
