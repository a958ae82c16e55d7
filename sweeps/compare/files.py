"""The comparison as data: JSON for programs, CSV for a spreadsheet; and files that are there whole or not at all."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.files import write_atomic
from sweeps.compare.columns import ABSENT, value_of
from sweeps.compare.report import Member, Report, Setting


def check_writable(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before any work is done.

    Raises:
        UserError: its folder is not there, or nothing can be written in it; or ``path`` is a folder.
    """
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: there is no folder {folder}; make it, or choose another file")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: nothing can be written in {folder}; choose another folder")


def write_file(option: str, path: Path, data: bytes) -> None:
    """Replace ``path``, atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(path, data, durable=False)  # the same command writes it again
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}; choose another file") from None


def as_csv(report: Report) -> bytes:
    """A row for each run with every differing setting under its whole key; numbers as Python writes them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [column.key for column in report.columns]
    writer.writerow(["rank", "sweep", "run", "state", report.metric.name, "partial", "mean", "spread", "n", *keys])
    for record in records(report):
        values = [record["config"].get(key) for key in keys]
        heads = ("rank", "sweep", "run", "state", "value", "partial", "mean", "spread", "n")
        writer.writerow([_plain(value) for value in (*(record[head] for head in heads), *values)])
    return text.getvalue().encode("utf-8", "replace")


def as_json(report: Report) -> dict[str, Any]:
    """What ``--json`` prints; a number that is not finite, which JSON has not, is its name (``nan``)."""
    return {
        "title": report.title,
        "metric": report.metric.name,
        "direction": "max" if report.metric.larger else "min",
        "columns": [{"key": c.key, "name": c.name, "seed": c.is_seed} for c in report.columns],
        "settings": [_setting_record(place, setting) for place, setting in enumerate(report.settings, 1)],
        "runs": [r | {"value": _finite(r["value"]), "mean": _finite(r["mean"])} for r in records(report)],
        "parameters": [
            {"key": p.key, "share": p.share, "n": p.runs, "groups": p.groups, "binned": p.binned, "note": p.note}
            for p in report.parameters
        ],
        "notes": list(report.notes),
    }  # fmt: skip


def records(report: Report) -> list[dict[str, Any]]:
    """One for each run, the ranked first; ``rank`` is that of its setting."""
    found = []
    for place, setting in enumerate(report.settings, 1):
        common = {"rank": place, "mean": setting.mean, "spread": setting.spread, "n": len(setting.members)}
        found += [_record(report, member) | common for member in setting.members]
    none = {"rank": None, "mean": None, "spread": None, "n": None}
    return found + [_record(report, member) | none for member in report.unranked]


def _record(report: Report, member: Member) -> dict[str, Any]:
    run = member.run
    config = {c.key: value for c in report.columns if (value := value_of(run, c.key)) != ABSENT}
    return {
        "sweep": run.sweep, "run": run.run_id, "path": str(run.rundir.path), "state": run.state, "value": member.value,
        "partial": member.partial and member.value is not None, "config": config, "problems": list(run.problems),
    }  # fmt: skip


def _setting_record(place: int, setting: Setting) -> dict[str, Any]:
    return {
        "rank": place, "mean": _finite(setting.mean), "spread": setting.spread, "n": len(setting.members),
        "runs": [member.run.run_id for member in setting.members],
    }  # fmt: skip


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
