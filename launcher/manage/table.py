"""The table of ``launcher status``: one line a run, columns without a value left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.manage.states import RunState
from launcher.manage.terminal import printable
from launcher.runtime.sweepdir import SweepDir

COLOURS = {
    "COMPLETED": "green", "RUNNING": "cyan", "FAILED": "bold red", "STALLED": "bold yellow", "CANCELLED": "magenta",
    "REQUEUED": "yellow", "PREEMPTED": "yellow", "SUBMITTED": "blue", "PLANNED": "dim",
}  # fmt: skip
"""Style of each state, as rich names them."""
_HEADINGS = (
    "sweep", "run", "state", "step", "loss", "samples/s", "attempts", "job", "node", "avoids", "reason",
    "start", "parent", "overrides",
)  # fmt: skip
_LONGEST = 60
"""Letters of a reason in the table; `logs` and `--json` have all of it."""
_RIGHT = ("step", "loss", "samples/s", "attempts")


def differing(sweeps: Sequence[SweepDir]) -> dict[tuple[SweepDir, str], tuple[str, ...]]:
    """For each run of each sweep the overrides that not all runs of its sweep have, but for those of one command."""
    found = {}
    for sweep in dict.fromkeys(sweeps):
        members = sweep.read_members()
        shared = set.intersection(*map(set, members.values())) if members else set()
        for run_id, overrides in members.items():
            others = (text for text in overrides if text not in shared)
            found[sweep, run_id] = tuple(text for text in others if not text.startswith("launch."))
    return found


def records(rows: Sequence[tuple[SweepDir, RunState]]) -> list[dict[str, Any]]:
    """What ``--json`` prints: every field of each run, ``sweep`` and ``differs``."""
    differs = differing([sweep for sweep, _ in rows])
    return [
        {"sweep": sweep.path.name, **dataclasses.asdict(state), "differs": differs.get((sweep, state.run_id), ())}
        for sweep, state in rows
    ]


def lines(rows: Sequence[tuple[SweepDir, RunState]]) -> list[str]:
    """The table: its headings, then a line for each run, in order."""
    several = len({sweep for sweep, _ in rows}) > 1
    cells = [_cells(record, several) for record in records(rows)]
    shown = [name for name in _HEADINGS if any(cell[name] for cell in cells)]
    widths = {name: max(len(name), *(len(cell[name]) for cell in cells)) for name in shown}
    heads = {name: name for name in shown}
    return [_line(cell, widths) for cell in [heads, *cells]] if cells else []


def _line(cell: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = (cell[n].rjust(width) if n in _RIGHT else cell[n].ljust(width) for n, width in widths.items())
    return "  ".join(parts).rstrip()


def _cells(record: Mapping[str, Any], several: bool) -> dict[str, str]:
    texts = {
        "sweep": record["sweep"] if several else "",
        "run": record["run_id"],
        "state": record["state"],
        "step": _number(record["step"], "{:d}"),
        "loss": _number(record["loss"], "{:.4g}"),
        "samples/s": _number(record["samples_per_s"], "{:.4g}"),
        "attempts": _number(record["attempts"] or None, "{:d}"),
        "job": record["job_id"] or "",
        "node": record["node"],
        "avoids": ",".join(one["node"] for one in record["excluded"]),
        "reason": _cut(record["reason"]),
        "start": record["start"].replace("T", " "),
        "parent": record["parent"],
        "overrides": " ".join(record["differs"]),
    }
    return {name: printable(" ".join(text.split())) for name, text in texts.items()}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _number(value: Any, form: str) -> str:
    try:
        return "" if value is None else form.format(value)
    except (TypeError, ValueError):  # a status file that somebody else wrote
        return str(value)
