"""``launcher logs``: what the rank that failed first said, and why it did."""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.manage.evidence import Evidence, gather
from launcher.manage.states import RunState
from launcher.manage.survey import survey
from launcher.manage.targets import Target, one_run
from launcher.manage.terminal import lines_of, printable
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.sweepdir import SweepDir

_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 3.0
_CHUNK = 1 << 16


def show_logs(word: str, cwd: Path, env: Mapping[str, str], *, rank: int | None, lines: int, follow: bool) -> int:
    """Print a run's log to stdout, and whose it is and why the run ended to stderr; returns the exit code.

    Args:
        word: names the run (see ``targets.named``).
        rank: whose log; None: the rank that failed first, else rank 0.
        lines: this many at most, the last ones; 0: all.
        follow: go on until the run is over, or Ctrl-C.

    Raises:
        UserError: no such run, or it said nothing yet.
    """
    sweep, run_id = one_run(word, cwd)
    state = _look(sweep, run_id, env, say=True)
    found = gather(sweep, state, rank)
    if follow:
        try:
            return _follow(sweep, state, found, env, lines)
        except KeyboardInterrupt:
            return ExitCode.DONE
    file = found.file
    _tell(state, found, file)
    if file is None:
        raise UserError(f"{state.path}: {_no_log(found, sweep, rank)}")
    for line in last_lines(file, lines):
        print(line)
    return ExitCode.DONE


def _look(sweep: SweepDir, run_id: str, env: Mapping[str, str], say: bool = False) -> RunState:
    seen = survey([Target(sweep, (run_id,))], env)
    for problem in seen.problems if say else ():
        print(f"{problem}; shown is what the run's own files say", file=sys.stderr)
    return seen.states[0]


def _tell(state: RunState, found: Evidence, file: Path | None) -> None:
    where = f" on {printable(found.host)}" if found.host else ""
    failed = " failed first" if found.failed else ""
    reason = f": {printable(state.reason)}" if state.reason else ""
    print(f"{state.path} is {state.state}{reason}", file=sys.stderr)
    print(f"rank {found.rank}{where}{failed}: {file or 'no log yet'}", file=sys.stderr)
    if found.cause:
        print(f"cause: {printable(str(found.cause))}", file=sys.stderr)
    for one in state.excluded:
        print(f"avoids {printable(f'{one.node}: {one.reason}')}", file=sys.stderr)
    sys.stderr.flush()


def _no_log(found: Evidence, sweep: SweepDir, rank: int | None) -> str:
    folder = found.files[0].parent
    there = sorted(path.name for path in folder.glob("rank*.log")) if folder.is_dir() else []
    if rank is not None and there:
        return f"rank {rank} has no log (there are: {', '.join(there)})"
    return "has no log yet; wait for it with -f, or see why with: python -m launcher status " + str(sweep.path)


def last_lines(file: Path, count: int) -> Iterator[str]:
    """The last ``count`` lines of a text file, printable; 0: all of them. Memory holds no more than those."""
    with file.open("rb") as stream:
        if count:
            stream.seek(_start_of_last(stream.fileno(), count))
        kept: deque[str] | list[str] = deque(maxlen=count) if count else []
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rest = ""
        while chunk := stream.read(_CHUNK):
            whole, rest = _whole_lines(rest + decoder.decode(chunk))
            kept.extend(whole)
            if not count:
                yield from kept
                kept.clear()
        kept.extend(lines_of(rest))
        yield from kept


def _start_of_last(descriptor: int, count: int) -> int:
    """A place at or before the last ``count`` lines."""
    place, ends = os.fstat(descriptor).st_size, 0
    while place > 0 and ends <= count:
        size = min(_CHUNK, place)
        place -= size
        ends += os.pread(descriptor, size, place).count(b"\n")
    return place


def _whole_lines(text: str) -> tuple[list[str], str]:
    """Complete lines, printable, and what is left of the last one; one without an end is cut where it grows long."""
    cut = text.rfind("\n") + 1
    if not cut and len(text) > _CHUNK:
        cut = len(text)
    return lines_of(text[:cut]), text[cut:]


class Follower:
    """Reads what is appended to a file that may not be there yet, may be cut short, and may be replaced."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._file: Path | None = None
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, file: Path) -> list[str]:
        """New lines of ``file``, printable."""
        try:
            with file.open("rb") as stream:
                stat = os.fstat(stream.fileno())
                self._turn_to(file, (stat.st_dev, stat.st_ino), stat.st_size, stream.fileno())
                stream.seek(self._offset)
                data = stream.read()
        except OSError:  # not there yet, or being replaced
            return []
        self._offset += len(data)
        new, self._rest = _whole_lines(self._rest + self._decoder.decode(data))
        if self._lines and len(new) > self._lines:
            new = new[-self._lines :]
        self._lines = 0 if new else self._lines
        return new

    def rest(self) -> list[str]:
        """What stands after the last line's end."""
        rest, self._rest = self._rest, ""
        return lines_of(rest)

    def _turn_to(self, file: Path, identity: tuple[int, int], size: int, descriptor: int) -> None:
        if (file, identity) == (self._file, self._identity) and size >= self._offset:
            return
        first = self._file is None
        self._file, self._identity, self._rest = file, identity, ""
        self._offset = _start_of_last(descriptor, self._lines) if first and self._lines else 0
        self._decoder.reset()


def _follow(sweep: SweepDir, state: RunState, found: Evidence, env: Mapping[str, str], lines: int) -> int:
    """Print what is added until the run is over; a requeue goes on in the same file."""
    follower, told, asked = Follower(lines), "", time.monotonic()
    while True:
        over = state.is_over  # known before the last look at the file: nothing is written after it
        file = found.file
        if (now := f"{state.state} {file}") != told:
            told = now
            _tell(state, found, file)
        for line in follower.read(file) if file else ():
            print(line)
        if over:
            for line in follower.rest():
                print(line)
        sys.stdout.flush()
        if over:
            return ExitCode.DONE
        time.sleep(_LOOK_EVERY_S)
        if time.monotonic() - asked >= _ASK_EVERY_S:
            asked = time.monotonic()
            state = _look(sweep, state.run_id, env)
            if state.is_over:  # how it ended; the same rank is followed to its end
                found = gather(sweep, state, found.rank)
            elif file is None:
                found = gather(sweep, state, found.rank if found.failed else None)
