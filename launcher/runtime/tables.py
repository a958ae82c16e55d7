"""CSV files that grow with a run's steps, and go on where a resumed run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.files import write_atomic


class StepTable:
    """A CSV file with ``step`` first, cut back to ``step`` when a run goes on, flushed row by row."""

    def __init__(self, path: Path, header: Sequence[str], step: int) -> None:
        """Open ``path`` to go on after ``step``; 0 starts it anew."""
        text, kept = io.StringIO(), _rows_up_to(path, step)
        csv.writer(text, lineterminator="\n").writerows([header, *kept])
        write_atomic(path, text.getvalue().encode(), durable=bool(kept))  # a new table has nothing to lose yet
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows, their step first; they reach the file before this returns."""
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()


def _rows_up_to(path: Path, step: int) -> list[list[str]]:
    """Rows of an earlier attempt up to ``step``; a row torn by a crash, without its end of line, is dropped."""
    if not path.exists() or step == 0:
        return []
    try:
        return _read_up_to(path, step)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it and the run goes on without") from None


def _read_up_to(path: Path, step: int) -> list[list[str]]:
    whole_lines, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    header, *rows = csv.reader(io.StringIO(whole_lines, newline=""))
    return [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
