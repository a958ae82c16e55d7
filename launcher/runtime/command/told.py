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

    def take(self) -> None:
        """Pass on what is new."""
        for line in self._new_lines():
            try:
                record = json.loads(line)
                step = int(record.pop("step"))
            except (ValueError, TypeError, KeyError, AttributeError):
                log.warning("LAUNCHER_METRICS: no object of JSON with a step: %.200r", line)
                continue
            self._pass_on(step, record)

    def _pass_on(self, step: int, record: dict[str, Any]) -> None:
        self.lines += 1
        if (total := record.pop("total_steps", None)) is not None:
            self._session.expect(int(total))
        saved = record.pop("saved", False)
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
        self.numbers |= {name: value for name, value in numbers.items() if "/" not in name}
        texts = {name: value for name, value in record.items() if isinstance(value, str)}
        self._session.log({name: value for name, value in {**numbers, **texts}.items() if "/" in name}, step)
        if saved:
            self._session.save({"step": step}, due=True)

    def _new_lines(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # not whole yet
                    break
                self._read += len(line)
                if line.strip():
                    yield line
