"""``launcher status``: one row a run."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.manage.progress import Pace, progress_of, told
from launcher.manage.survey import Survey, look_again, open_workers, survey
from launcher.manage.table import COLOURS, lines, records
from launcher.manage.targets import below
from launcher.manage.terminal import printable
from launcher.runtime.errors import ExitCode, UserError
from launcher.submission.waiting import count

if TYPE_CHECKING:  # rich is imported where there is a terminal to draw on
    from rich.text import Text

    from launcher.manage.advice import Advice

_LOOK_EVERY_S = 2.0
_LINE_EVERY_S = 60.0
"""Without a terminal, seconds between two lines about steps alone."""
_ORDER = ("STALLED", "RUNNING", "REQUEUED", "FAILED", "PREEMPTED", "SUBMITTED", "CANCELLED", "PLANNED", "COMPLETED")
"""What is worth a line first, where not all runs fit on the screen."""


def show_status(folder: Path, env: Mapping[str, str], *, watch: bool, as_json: bool, with_advice: bool = False) -> int:
    """Print the state of every run that ``folder`` stands for; returns the exit code.

    Args:
        watch: draw it anew until nothing changes any more, or Ctrl-C; without a terminal, a line of counts when they
            change.
        with_advice: ask Slurm too which shape of runs that wait would start sooner.

    Raises:
        UserError: there is no run, or it is to be watched with advice.
    """
    if watch and with_advice:
        raise UserError("--advise: looks once, and --watch again and again; leave one of them away")
    now = survey(below(folder), env)
    if not watch:
        _show(now, as_json, _advice(now, env) if with_advice else None)
        return ExitCode.DONE
    try:
        if as_json or not sys.stdout.isatty():
            now = _tell_changes(now, folder, env, sys.stderr if as_json else sys.stdout)
            if as_json:
                _show(now, as_json)
        else:
            _draw(now, folder, env)
    except KeyboardInterrupt:
        print("no longer watching; the runs go on", file=sys.stderr)
    return ExitCode.DONE


def _advice(now: Survey, env: Mapping[str, str]) -> list[Advice]:
    from launcher.manage.advice import advise

    return advise(now.rows, env)


def _show(now: Survey, as_json: bool, advice: Sequence[Advice] | None = None) -> None:
    if as_json:
        rows = records(now.rows)
        if advice is not None:
            told_of = {path: one.to_json() for one in advice for path in one.paths}
            rows = [row | {"advice": told_of.get(row["path"])} for row in rows]
        print(json.dumps(rows, indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False, soft_wrap=True).print(_coloured(lines(now.rows)))
    else:
        print("\n".join(lines(now.rows)))
    if advice is not None and not as_json:
        print("\n".join(printable(line) for one in advice for line in one.lines()) or "no run waits")
    sys.stdout.flush()
    _say_problems(now)
    print(count(now.states), file=sys.stderr)
    progress = progress_of(now.states)
    if len(now.rows) > 1 and progress.expected_steps:
        print(told(progress), file=sys.stderr)


def _say_problems(now: Survey) -> None:
    for problem in now.problems:
        print(f"{problem}; shown is what the runs' own files say", file=sys.stderr, flush=True)


def _coloured(table: Sequence[str]) -> Text:
    from rich.text import Text

    text = Text("\n".join(table), no_wrap=True, overflow="ellipsis")
    for state, style in COLOURS.items():
        text.highlight_regex(rf"(?<=  ){state}(?=  |$|\n)", style)
    text.stylize("bold", 0, len(table[0]) if table else 0)
    return text


def _tell_changes(now: Survey, folder: Path, env: Mapping[str, str], stream: object) -> Survey:
    """A line when a run changes its state, and now and then one when steps were done."""
    before, steps, last_line, pace = "", -1, float("-inf"), Pace()
    while True:
        progress, now_s = progress_of(now.states), time.monotonic()
        speed = pace.runs_per_hour(now_s, progress)
        moved = progress.steps != steps and now_s - last_line >= _LINE_EVERY_S
        if (counts := count(now.states)) != before or moved:
            before, steps, last_line = counts, progress.steps, now_s
            print(f"{counts}  {told(progress, speed)}", file=stream, flush=True)  # type: ignore[call-overload]
            _say_problems(now)
        if _is_over(now, folder, env):
            return now
        time.sleep(_LOOK_EVERY_S)
        now = look_again(now, below(folder), env)


def _is_over(now: Survey, folder: Path, env: Mapping[str, str]) -> bool:
    """Whether nothing changes any more: no run goes on, and no worker of a study is there to begin another."""
    if not all(state.is_over for state in now.states):
        return False
    try:
        return not any(open_workers(target.sweep, env) for target in below(folder) if target.runs is None)
    except UserError:  # Slurm is away: said with the rows where they need it
        return True


def _draw(now: Survey, folder: Path, env: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.live import Live

    pace = Pace()
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            progress = progress_of(now.states)
            line = told(progress, pace.runs_per_hour(time.monotonic(), progress))
            live.update(_screen(now, line), refresh=True)
            if _is_over(now, folder, env):
                return
            time.sleep(_LOOK_EVERY_S)
            now = look_again(now, below(folder), env)


def _screen(now: Survey, progress: str) -> Text:
    room = max(1, shutil.get_terminal_size().lines - 5 - len(now.problems))
    rows = now.rows
    if len(rows) > room:
        rows = sorted(rows, key=lambda pair: _ORDER.index(pair[1].state) if pair[1].state in _ORDER else -1)[:room]
    more = [f"and {len(now.rows) - len(rows)} more"] if len(rows) < len(now.rows) else []
    return _coloured([*lines(rows), *more, *now.problems, count(now.states), progress])
