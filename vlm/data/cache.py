"""Pictures decoded once: every row of a data file as uint8 in memory-mapped files, shared by all runs on a machine.

A cache is named by the content of the data, the columns and the picture size. It is built aside under a lock and
renamed into place, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.runtime.errors import UserError
from launcher.runtime.polling import ASK_S, Poll, keep_going
from launcher.runtime.stage import stage
from vlm.data.build_once import build_once, damaged
from vlm.data.csv_index import CsvIndex
from vlm.data.row import BadRow, Row, read_row

log = logging.getLogger(__name__)

_FORMAT = 3
_CHUNK = 64


@dataclass(frozen=True)
class DecodedRows:
    """All rows of a data file, decoded. Row ``i`` here is row ``i`` of the file; unusable rows hold zeros."""

    images: np.ndarray
    """``(rows, 3, size, size) uint8``, memory-mapped."""
    picture_ids: np.ndarray
    """``(rows,) V16``: equal where the pictures are equal."""
    caption_bytes: memoryview
    """All captions in UTF-8, one after the other, memory-mapped."""
    caption_ends: np.ndarray
    """``(rows,) int64``: where each caption ends in ``caption_bytes``."""
    caption_chars: np.ndarray
    """``(rows,) int64``: characters of each caption."""
    bad: dict[int, str]
    """Row number (from 0) to the reason why it cannot be used."""

    def __len__(self) -> int:
        return len(self.images)

    def caption(self, row: int) -> str:
        """The caption of a row."""
        return self.captions(np.array([row]))

    def captions(self, rows: np.ndarray) -> str:
        """The captions of ``rows``, one behind the other."""
        ends = self.caption_ends[rows].tolist()
        starts = np.where(rows > 0, self.caption_ends[rows - 1], 0).tolist()
        data = self.caption_bytes
        return b"".join([data[start:end] for start, end in zip(starts, ends, strict=True)]).decode()

    def caption_sizes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of the captions of ``rows``."""
        return self.caption_ends[rows] - np.where(rows > 0, self.caption_ends[rows - 1], 0)


def open_decoded(
    index: CsvIndex,
    image_column: str,
    caption_column: str,
    size: int,
    on_error: str,
    cache_dir: Path,
    poll: Poll = keep_going,
    stage_in: Path | None = None,
) -> DecodedRows:
    """The decoded rows of ``index`` at ``size`` pixels, built on first use; ``poll`` is called while they are built.

    Args:
        stage_in: folder on this node's own disk; they are copied there, once a node, and read from the copy.

    Raises:
        UserError: a row is bad and ``on_error`` is ``raise`` (the first one, by number and reason), or all are bad.
    """
    key = hashlib.sha256(repr((_FORMAT, index.digest, image_column, caption_column)).encode()).hexdigest()[:24]
    folder = cache_dir / "decoded" / f"{key}-{size}px"
    columns = index.header.index(image_column), index.header.index(caption_column)
    build_once(folder, lambda aside: _build(index, columns, size, on_error, aside, poll), poll)
    if stage_in is not None:
        folder = stage(folder, stage_in, poll)
    try:
        decoded = _open(folder, len(index), size)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(folder, error) from None
    if decoded.bad and on_error == "raise":
        row, reason = min(decoded.bad.items())
        raise _bad_row(index.path, row, reason)
    if len(decoded.bad) == len(decoded):
        raise UserError(f"{index.path}: none of its {len(decoded)} rows can be used; row 1: {decoded.bad[0]}")
    if decoded.bad:
        first = "; ".join(f"row {row + 1}: {reason}" for row, reason in sorted(decoded.bad.items())[:3])
        log.warning("%s: %d of %d rows left out (%s)", index.path, len(decoded.bad), len(decoded), first)
    return decoded


def _bad_row(path: Path, row: int, reason: str) -> UserError:
    return UserError(f"{path}: row {row + 1}: {reason} (data.on_error=skip leaves such rows out)")


def _open(folder: Path, rows: int, size: int) -> DecodedRows:
    found = json.loads((folder / "rows.json").read_text())
    decoded = DecodedRows(
        images=_mapped(folder / "images.u8", "uint8").reshape(rows, 3, size, size),
        picture_ids=_mapped(folder / "picture_ids.v16", "V16"),
        caption_bytes=_mapped(folder / "captions.u8", "uint8").data,
        caption_ends=_mapped(folder / "caption_ends.i64", "int64"),
        caption_chars=_mapped(folder / "caption_chars.i64", "int64"),
        bad={int(row): reason for row, reason in found["bad"].items()},
    )
    last = int(decoded.caption_ends[-1])
    sizes = (
        len(decoded.picture_ids),
        len(decoded.caption_ends),
        len(decoded.caption_chars),
        len(decoded.caption_bytes),
    )
    if sizes != (rows, rows, rows, last):
        raise ValueError(f"files of {sizes} entries for {rows} rows")
    return decoded


def _mapped(path: Path, kind: str) -> np.ndarray:
    """A file as an array that is read where it is touched (a plain ndarray: memmap's own slicing is slow)."""
    return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.empty(0, kind)


def _build(index: CsvIndex, columns: tuple[int, int], size: int, on_error: str, folder: Path, poll: Poll) -> None:
    log.info("decoding %d pictures of %s at %d px, once for all runs", len(index), index.path, size)
    bad: dict[int, str] = {}
    end = 0
    with (
        (folder / "images.u8").open("wb") as images,
        (folder / "picture_ids.v16").open("wb") as ids,
        (folder / "captions.u8").open("wb") as captions,
        (folder / "caption_ends.i64").open("wb") as ends,
        (folder / "caption_chars.i64").open("wb") as chars,
        closing(_rows(index, columns, size, poll)) as rows,
    ):
        for number, row in enumerate(rows):
            if isinstance(row, BadRow):
                if on_error == "raise":
                    raise _bad_row(index.path, number, str(row))
                bad[number] = str(row)
                row = Row(np.zeros((3, size, size), np.uint8), "", bytes(16))
            text = row.caption.encode()
            end += len(text)
            images.write(row.pixels.data)
            ids.write(row.picture_id)
            captions.write(text)
            ends.write(np.int64(end).tobytes())
            chars.write(np.int64(len(row.caption)).tobytes())
    index.require_unchanged()
    (folder / "rows.json").write_text(json.dumps({"bad": bad}))


def _rows(index: CsvIndex, columns: tuple[int, int], size: int, poll: Poll) -> Generator[Row | BadRow, None, None]:
    """Every row in order, decoded on all cores (Pillow lets go of the interpreter lock while it decodes).

    Closed early, or left by what ``poll`` raises, it starts no more of them and waits for those under way.
    """

    def read(number: int) -> Row | BadRow:
        try:
            fields = index.fields(number)
            if len(fields) != len(index.header):
                raise BadRow(f"has {len(fields)} fields, the header has {len(index.header)}")
            return read_row(fields[columns[0]], fields[columns[1]], size)
        except BadRow as error:
            return error
        except ValueError as error:
            return BadRow(str(error))

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks name no row; what makes a row unusable is an error
        try:
            for start in range(0, len(index), _CHUNK):  # a bounded number of results in memory at a time
                chunk = range(start, min(start + _CHUNK, len(index)))
                for future in [pool.submit(read, number) for number in chunk]:
                    yield _result(future, poll)
        finally:
            pool.shutdown(cancel_futures=True)


def _result(future: Future[Row | BadRow], poll: Poll) -> Row | BadRow:
    """What ``future`` comes to, with a poll before and while it is waited for: a large picture takes a second."""
    poll()
    while not wait([future], ASK_S).done:
        poll()
    return future.result()
