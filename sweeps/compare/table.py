"""The comparison as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.manage.terminal import printable
from sweeps.compare.columns import ABSENT, shown, value_of
from sweeps.compare.importance import Importance
from sweeps.compare.report import Member, Report, Setting

_LONGEST = 32
_BAR = 20


def lines(report: Report, top: int | None, *, runs: bool) -> Iterator[str]:
    """The tables, each after a line that says what it is.

    Args:
        top: how many settings (or runs) of each table; None: all.
        runs: a line for each run instead of one for each setting.
    """
    ranked = report.ranked
    way = "largest" if report.metric.larger else "smallest"
    count = f"{len(ranked)} COMPLETED {_runs(ranked)} of {len(report.settings)} settings"
    yield f"{printable(report.title)}: {count}, by {printable(report.metric.name)}, {way} first"
    if ranked:
        rows = list(_run_rows(report) if runs else _setting_rows(report))
        yield from _table(rows[: None if top is None else top + 1])
        if top is not None and len(rows) > top + 1:
            yield f"and {len(rows) - top - 1} more (--all)"
    if report.unranked:
        yield ""
        yield f"not COMPLETED, not ranked: {len(report.unranked)}"
        yield from _table(list(_unranked_rows(report))[: None if top is None else top + 1])
        if top is not None and len(report.unranked) > top:
            yield f"and {len(report.unranked) - top} more (--all)"
    if report.parameters:
        yield ""
        yield f"share of the variance of {printable(report.metric.name)} that each setting explains alone"
        yield "(epsilon squared of a one-way analysis of variance: main effects only)"
        yield from _table(list(_parameter_rows(report)), left=True)


def number(value: float | None) -> str:
    """A metric with five digits."""
    return ABSENT if value is None else f"{value:.5g}"


def told(one: Importance) -> str:
    """How much stands behind a share, or why there is none."""
    detail = "" if one.share is None else f"{one.runs} runs, {one.groups} values"
    return "; ".join(filter(None, (f"{one.runs} runs" if one.binned else detail, one.note)))


def _runs(members: Sequence[Member]) -> str:
    return "run" if len(members) == 1 else "runs"


def _setting_rows(report: Report) -> Iterator[list[str]]:
    columns = [column for column in report.columns if not column.is_seed]
    yield ["#", report.metric.name, "±", "n", *(column.name for column in columns), *_sweep_head(report), "best run"]
    for place, setting in enumerate(report.settings, 1):
        yield [
            str(place), number(setting.mean), _spread(setting), str(len(setting.members)),
            *(shown(value_of(setting.first, column.key)) for column in columns), *_sweep(report, setting.members),
            setting.first.run_id,
        ]  # fmt: skip


def _run_rows(report: Report) -> Iterator[list[str]]:
    heads = [column.name for column in report.columns]
    yield ["#", report.metric.name, "mean", "±", "n", *heads, *_sweep_head(report), "run"]
    for place, setting in enumerate(report.settings, 1):
        for member in setting.members:
            yield [
                str(place), number(member.value), number(setting.mean), _spread(setting), str(len(setting.members)),
                *(shown(value_of(member.run, column.key)) for column in report.columns), *_sweep(report, [member]),
                member.run.run_id,
            ]  # fmt: skip


def _unranked_rows(report: Report) -> Iterator[list[str]]:
    heads = [column.name for column in report.columns]
    yield ["run", "state", f"~{report.metric.name}", "step", *heads, *_sweep_head(report), "reason"]
    for member in report.unranked:
        status = member.run.status
        yield [
            member.run.run_id, member.run.state, "" if member.value is None else "~" + number(member.value),
            str(status.get("step") or ""), *(shown(value_of(member.run, column.key)) for column in report.columns),
            *_sweep(report, [member]), "; ".join(member.run.problems) or str(status.get("reason") or ""),
        ]  # fmt: skip


def _parameter_rows(report: Report) -> Iterator[list[str]]:
    for one in report.parameters:
        share = "?" if one.share is None else ">99%" if one.share > 0.995 else f"{one.share:.0%}"
        bar = "" if one.share is None else "█" * round(_BAR * one.share)
        yield [report.name_of(one.key), share, bar, told(one)]


def _spread(setting: Setting) -> str:
    return "" if setting.spread is None else f"{setting.spread:.2g}"


def _sweep_head(report: Report) -> list[str]:
    return ["sweep"] if _several(report) else []


def _sweep(report: Report, members: Sequence[Member]) -> list[str]:
    return [",".join(dict.fromkeys(member.run.sweep for member in members))] if _several(report) else []


def _several(report: Report) -> bool:
    return len({member.run.sweep for member in (*report.ranked, *report.unranked)}) > 1


def _table(rows: Sequence[Sequence[str]], *, left: bool = False) -> Iterator[str]:
    cells = [[_cell(text, last=i == len(row) - 1) for i, text in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        parts = [text.ljust(width) if left else text.rjust(width) for text, width in zip(row, widths, strict=True)]
        parts[-1] = parts[-1].strip()
        yield "  ".join(parts).rstrip()


def _cell(text: str, *, last: bool) -> str:
    text = printable(" ".join(text.split()))
    return text if last or len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
