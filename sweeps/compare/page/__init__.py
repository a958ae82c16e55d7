"""One page that shows a comparison: self-contained, without a request to anywhere, the same bytes for the same runs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

from sweeps.compare.columns import value_of
from sweeps.compare.metric import Metric
from sweeps.compare.picture import MOST_POINTS, curve_of, thinned
from sweeps.compare.report import Member, Report
from sweeps.compare.table import told

_HERE = Path(__file__).parent
_SCRIPTS = ("base.js", "curves.js", "parameters.js", "parallel.js", "table.js", "main.js")
_MOST_RUNS = 200
"""Whose curves are in the page."""
_MOST_CURVES = 6
_DIGITS = 5


def render(report: Report) -> bytes:
    """The page. Whatever a user wrote is text in it: the title escaped, all else as JSON that no browser runs.

    A Content-Security-Policy (W3C CSP 3) allows the one script and the one style sheet by their hashes, and no request.
    """
    script = "'use strict';\n" + "\n".join(_read(name) for name in _SCRIPTS)
    style = _read("page.css")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'"
    parts = {
        "csp": html.escape(f"{policy}; form-action 'none'"),
        "title": html.escape(report.title),
        "style": style,
        "script": script,
        "data": as_data(_content(report)),
    }
    # One pass: what stands in a part is never taken for the place of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html")).encode("utf-8", "replace")


def as_data(content: Any) -> str:
    """JSON that no text in it can end the script element of (HTML, 4.12.1.3: ``</script``, ``<!--``)."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _content(report: Report) -> dict[str, Any]:
    members = [*report.ranked, *report.unranked]
    place = {id(m): i for i, setting in enumerate(report.settings) for m in setting.members}
    return {
        "metric": report.metric.name,
        "larger": report.metric.larger,
        "columns": [{"key": c.key, "name": c.name, "seed": c.is_seed} for c in report.columns],
        "settings": [
            {"rank": i, "mean": _json(s.mean), "spread": _json(s.spread), "n": len(s.members)}
            for i, s in enumerate(report.settings, 1)
        ],
        "runs": [_run(report, member, place.get(id(member))) for member in members],
        "parameters": [
            {"key": p.key, "name": report.name_of(p.key), "share": p.share, "told": told(p)} for p in report.parameters
        ],
        "notes": list(report.notes),
        "curves": _curves(report.metric, members),
    }


def _run(report: Report, member: Member, setting: int | None) -> dict[str, Any]:
    run = member.run
    reason = run.status.get("reason") if member.partial else ""
    return {
        "id": run.run_id, "sweep": run.sweep, "state": run.state, "setting": setting, "value": _json(member.value),
        "partial": member.partial, "problem": "; ".join([*run.problems, *filter(None, [str(reason or "")])]),
        "values": [_setting(value_of(run, column.key)) for column in report.columns],
    }  # fmt: skip


def _curves(metric: Metric, members: list[Member]) -> dict[str, Any]:
    """Of the best runs; steps that curves share are there once."""
    first = curve_of(metric, members)
    known = dict.fromkeys(name for member in members for name in member.run.series if not name.startswith("time/"))
    wanted = dict.fromkeys(name for name in (first, "val/loss", "train/loss", *sorted(known)) if name)
    names = [name for name in wanted if name in known or name == first][:_MOST_CURVES]
    shown = [(i, member.run) for i, member in enumerate(members) if any(n in member.run.series for n in names)]
    steps: dict[tuple[int, ...], int] = {}
    lines: dict[str, list[Any]] = {name: [] for name in names}
    is_thinned = False
    for index, run in shown[:_MOST_RUNS]:
        for name in names:
            whole = run.series.get(name, ([], []))
            at, values = thinned(whole)
            is_thinned |= len(whole[0]) > MOST_POINTS
            if at:
                where = steps.setdefault(tuple(at), len(steps))
                lines[name].append([index, where, [float(f"{value:.{_DIGITS}g}") for value in values]])
    return {
        "names": names, "lines": lines, "steps": [list(key) for key in steps], "shown": min(len(shown), _MOST_RUNS),
        "total": len(members), "thinned": is_thinned, "points": MOST_POINTS,
    }  # fmt: skip


def _setting(value: Any) -> Any:
    return ("true" if value else "false") if isinstance(value, bool) else "null" if value is None else _json(value)


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
