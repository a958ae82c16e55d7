"""What a program says of itself: lines of JSON, passed on to the session."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch
    from launcher.runtime.session import Session

log = logging.getLogger(__name__)

_MOST_STEPS = 10**12
"""What the name of a checkpoint has room for."""


class Told:
    """What the program says in its file of metrics: objects of JSON, one a line, each with a ``step``.

    Other keys: ``saved`` (true: it can go on from this step), ``total_steps``, numbers and texts to be logged under
    ``<split>/<name>``, and numbers without a split, which the summary has in the end.
    """

    def __init__(self, session: Session, path: Path) -> None:
        self.lines = 0
        """So far."""
        self.numbers: dict[str, Any] = {}
        """The newest value of each number that has no split."""
        self._session, self._path, self._read = session, path, 0

    def take(self, *, last: bool = False) -> None:
        """Pass on what is new; ``last``: no more will come, and a line without an end is whole."""
        for line in self._new_lines(last):
            try:
                record = json.loads(line, parse_constant=_refuse)
                step, total = int(record.pop("step")), record.pop("total_steps", None)
                total = None if total is None else int(total)
                if not 0 <= step < _MOST_STEPS:
                    raise ValueError(step)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                log.warning("LAUNCHER_METRICS: no object of JSON with a step: %.200r", line)
                continue
            self._pass_on(step, total, record)

    def _pass_on(self, step: int, total: int | None, record: dict[str, Any]) -> None:
        self.lines += 1
        if total is not None:
            self._session.expect(total)
        saved = record.pop("saved", False)
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
        self.numbers |= {name: value for name, value in numbers.items() if "/" not in name}
        texts = {name: value for name, value in record.items() if isinstance(value, str)}
        self._session.log({name: value for name, value in {**numbers, **texts}.items() if "/" in name}, step)
        if saved:
            self._session.save({"step": step}, due=True)

    def _new_lines(self, last: bool) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n") and not last:  # not whole yet
                    break
                self._read += len(line)
                if line.strip():
                    yield line


def _refuse(constant: str) -> None:
    """NaN and the infinities, which JSON has not: a loss that is none of its numbers is told as a text, if at all."""
    raise ValueError(constant)
