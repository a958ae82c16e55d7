"""What a person sees while a run goes on: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launcher.runtime.redaction import scrubbed

_LINE_EVERY_S = 10.0
_SHORTEST_BAR = 4
_BETWEEN = "  "
"""Between the numbers of a line."""
_CHATTY = ("matplotlib", "PIL")

log = logging.getLogger(__name__)


class Meter:
    """Progress of one run on stderr. ``expect`` names its length; ``show`` moves it."""

    def __init__(self, console: Console, visible: bool, opening: Callable[[int | None], str] | None = None) -> None:
        """``opening`` makes the run's first line of its length; logged when that is known, or with the first step."""
        self._opening = opening
        self._total: int | None = None
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        if visible and console.is_interactive:
            numbers = TextColumn("{task.description}", markup=False)
            left = (TimeRemainingColumn(compact=True), TextColumn("left"))
            self._bar = Progress(
                MofNCompleteColumn(), BarColumn(bar_width=None), numbers, *left, console=console, expand=True
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()

    def expect(self, total: int) -> None:
        """The run ends with step ``total``."""
        self._total = total
        self._open()
        if self._bar:
            self._bar.update(self._task, total=total)

    def show(self, step: int, text: str = "", *, important: bool = False) -> None:
        """``step`` is done. Without a terminal ``text`` becomes a line every ten seconds, or at once if important."""
        self._open()
        if self._bar:
            self._bar.update(self._task, completed=step, description=self._fitting(text) if text else None)
        now = time.monotonic()
        due = now - self._last_line >= _LINE_EVERY_S
        if text and not self._bar and (due or important):  # into the rank's log also where nobody watches
            self._last_line = now
            log.info("step %d/%s  %s", step, self._total or "?", text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar:
            self._bar.stop()

    def _fitting(self, text: str) -> str:
        """As many of the numbers in ``text``, from the first, as leave room for a bar in one line."""
        others = len(f"{self._total}/{self._total}") + len("   -0:00:00 left") + _SHORTEST_BAR
        numbers = text.split(_BETWEEN)
        while len(numbers) > 1 and self._bar and len(_BETWEEN.join(numbers)) + others > self._bar.console.width:
            numbers.pop()
        return _BETWEEN.join(numbers)

    def _open(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            log.info("%s", opening(self._total))


def digest(last: Mapping[str, float]) -> str:
    """The newest numbers that a person looks for, in a line: those of epoch, losses and speed that were logged."""
    names = {"train/epoch": "epoch {:.2f}", "train/loss": "loss {:.4f}", "val/loss": "val {:.4f}"}
    found = [form.format(last[name]) for name, form in names.items() if name in last]
    if (speed := last.get("train/samples_per_s")) is not None:
        found.append(f"{speed:.0f} samples/s" if speed >= 10 else f"{speed:.2g} samples/s")
    return _BETWEEN.join(found)


@contextmanager
def logging_to(path: Path, *, visible: bool) -> Iterator[Console]:
    """Send all log records to ``path`` for the time of the block, and to stderr too where ``visible``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    to_file = _QuietFile(path, encoding="utf-8")
    to_file.setFormatter(_Scrubbing("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [to_file]
    if visible:
        handlers.append(_terminal_handler(console))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for logger in map(logging.getLogger, _CHATTY):
        if logger.level != logging.WARNING:  # to set it takes a walk through all loggers there are
            logger.setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield console
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class _Scrubbing(logging.Formatter):
    """Writes no secret, in a traceback neither."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, scrubbed."""
        return scrubbed(super().format(record))


class _QuietFile(logging.FileHandler):
    """A log that cannot be written (a full disk) is told once, by what fails next; not by a traceback a line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""


def _terminal_handler(console: Console) -> logging.Handler:
    handler: logging.Handler
    if console.is_interactive:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(_Scrubbing("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Scrubbing("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    # A traceback goes to the file; the command that it ends prints it on the terminal.
    handler.addFilter(lambda record: record.exc_info is None)
    return handler
