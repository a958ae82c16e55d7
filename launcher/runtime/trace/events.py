"""What a trace is made of (Trace Event Format, as torch's Kineto writes it), and how it is read.

A trace is read as a stream: a file cut off in the middle gives what stands before the cut.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeGuard

from launcher.runtime.errors import UserError

STEP = "ProfilerStep#"
"""What a whole step is called, its number behind it: torch's own convention, which TensorBoard's plugin knows."""
PHASE = "phase::"
"""What the parts of a step are called, their name behind it."""

_CHUNK = 1 << 20
_PACKED_CHUNK = 1 << 14
_GZIP = 31
"""``wbits`` of zlib for a gzip header."""
_LONGEST_EVENT = 8 << 20
"""Characters; what is no event after so many is no trace any more."""
_LONGEST_HEAD = 16 << 20
_BEGIN = re.compile(r'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(r"[\s,]*")
_KEPT = frozenset(
    ("cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "cuda_driver", "Operator")
)


@dataclass(slots=True)
class Event:
    """Something that took time."""

    name: str
    kind: str
    """``cat`` of the format: cpu_op, user_annotation, kernel, gpu_memcpy, gpu_memset, cuda_runtime, cuda_driver."""
    thread: tuple[Any, Any]
    """Process and thread; of a GPU's work the GPU and the stream."""
    start: float
    """Microseconds."""
    length: float
    """Microseconds."""
    correlation: int
    """Ties a kernel to the call that launched it; -1: to none."""

    @property
    def end(self) -> float:
        """Microseconds."""
        return self.start + self.length


@dataclass
class Trace:
    """The events of a file, in its order."""

    path: Path
    events: list[Event] = field(default_factory=list)
    damage: str = ""
    """Why there is no more of it; empty: it is whole."""


def read_trace(path: Path) -> Trace:
    """Read ``path``, plain or gzipped; what is damaged is read up to the damage.

    Raises:
        UserError: it cannot be read, or is no trace, or holds nothing.
    """
    trace = Trace(path)
    try:
        with path.open("rb") as file:
            for raw in _objects(_Unpacked(file), trace):
                if (event := _event(raw)) is not None:
                    trace.events.append(event)
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a trace") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not trace.events:
        why = f" ({trace.damage})" if trace.damage else ""
        raise UserError(f"{path}: holds no events{why}; record one with profiler=steps")
    return trace


class _Unpacked:
    """A file, plain or gzipped, a piece at a time: unlike ``gzip.open`` it gives all that stands before a cut."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._gzip = zlib.decompressobj(_GZIP) if packed else None

    def read(self) -> bytes:
        """The next piece; empty at the end.

        Raises:
            EOFError, zlib.error: it is cut off, or damaged.
        """
        if self._gzip is None:
            return self._file.read(_CHUNK)
        while raw := self._file.read(_PACKED_CHUNK):
            if piece := self._gzip.decompress(raw):
                return piece
        if not self._gzip.eof:
            raise EOFError
        return b""


def _objects(file: _Unpacked, trace: Trace) -> Iterator[Any]:
    """The members of ``traceEvents``, or of an array that is the whole file; notes in ``trace`` what is damaged."""
    text = _Text(file, trace)
    if not text.find_begin():
        raise UserError(f"{trace.path}: is no trace: no list of traceEvents in it")
    decode = json.JSONDecoder(strict=False).raw_decode
    while True:
        text.skip(_BETWEEN)
        if text.at_end():
            trace.damage = trace.damage or "it ends in the middle"
            return
        if text.buffer[text.place] == "]":
            return
        try:
            value, text.place = decode(text.buffer, text.place)
        except (ValueError, RecursionError):
            if text.left() < _LONGEST_EVENT and text.more():
                continue
            trace.damage = trace.damage or ("it ends in the middle" if text.ended else "what follows is no JSON")
            return
        yield value


class _Text:
    """A file's text, a piece at a time."""

    def __init__(self, file: _Unpacked, trace: Trace) -> None:
        self.buffer, self.place, self.ended = "", 0, False
        self._file, self._trace = file, trace

    def more(self) -> bool:
        """Read on; False at the end."""
        if self.ended:
            return False
        try:
            piece = self._file.read()
        except (EOFError, zlib.error):
            self._trace.damage = "it is cut off or damaged"
            piece = b""
        self.ended = not piece
        # Names are what torch and users wrote; a character cut in two by the piece's edge is not worth a decoder.
        self.buffer = self.buffer[self.place :] + piece.decode("utf-8", "replace")
        self.place = 0
        return not self.ended

    def left(self) -> int:
        """Characters behind the place."""
        return len(self.buffer) - self.place

    def skip(self, what: re.Pattern[str]) -> None:
        """Go behind ``what``."""
        while True:
            found = what.match(self.buffer, self.place)
            self.place = found.end() if found else self.place
            if self.place < len(self.buffer) or not self.more():
                return

    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.place >= len(self.buffer) and not self.more()

    def find_begin(self) -> bool:
        """Go to the first event."""
        self.more()
        if self.buffer.lstrip().startswith("["):
            self.place = self.buffer.index("[") + 1
            return True
        while True:
            if found := _BEGIN.search(self.buffer):
                self.place = found.end()
                return True
            if len(self.buffer) > _LONGEST_HEAD or not self.more():
                return False


def _event(raw: Any) -> Event | None:
    """What took time on a processor or a GPU; None for anything else: names of threads, arrows, Python's own calls."""
    if not isinstance(raw, dict) or raw.get("ph") != "X":
        return None
    kind, name = raw.get("cat"), raw.get("name")
    start, length = raw.get("ts"), raw.get("dur", 0)
    if not isinstance(kind, str) or kind not in _KEPT or not isinstance(name, str):
        return None
    if not _is_number(start) or not _is_number(length) or length < 0:
        return None
    args = raw.get("args")
    correlation = args.get("correlation", -1) if isinstance(args, dict) else -1
    return Event(
        sys.intern(name),
        sys.intern("cpu_op" if kind == "Operator" else kind),
        (_plain(raw.get("pid")), _plain(raw.get("tid"))),
        float(start),
        float(length),
        correlation if isinstance(correlation, int) else -1,
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else str(value)
