"""``python -m vlm trace``: finds the trace that is meant, and writes its report as a table."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.files import write_atomic
from launcher.runtime.rundir import RunDir
from launcher.runtime.trace.report import HEADER, Report, explain

log = logging.getLogger(__name__)


def explain_run(path: Path, rank: int | None = None) -> Report:
    """The report of a trace file, or of the newest trace of a run or of a sweep's only traced run.

    Args:
        rank: of a run: whose trace; None: the lowest rank that recorded.

    Raises:
        UserError: there is no trace, or it cannot be read.
    """
    if path.is_dir():
        return explain(_newest(_traced(path), rank))
    if not path.exists():
        raise UserError(f"{path}: there is no such run or trace")
    return explain(path)


def write_csv(path: Path, report: Report, top: int) -> None:
    """Write ``report`` to ``path``, with the ``top`` longest events.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *report.rows(top)])
    try:
        write_atomic(path, text.getvalue().encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}") from None


def _traced(path: Path) -> RunDir:
    """The run ``path``, or the only run with traces in the sweep's folder ``path``."""
    rundir = RunDir(path)
    if rundir.plan.exists() or rundir.traces.is_dir():
        return rundir
    runs = [RunDir(plan.parent) for plan in sorted(path.glob(f"*/{rundir.plan.name}"))]
    if not runs:
        raise UserError(f"{path}: is no run, no sweep and no trace")
    traced = [run for run in runs if run.list_traces()]
    if len(traced) > 1:
        names = ", ".join(run.path.name for run in traced[:5])
        raise UserError(f"{path}: {len(traced)} of its runs have traces; name one: {names}")
    return traced[0] if traced else runs[0]


def _newest(rundir: RunDir, rank: int | None) -> Path:
    traces = rundir.list_traces()
    if not traces:
        raise UserError(f"{rundir.path}: has no trace; record one by running it with profiler=steps")
    if rank is None:
        return traces[0]
    mine = [trace for trace in traces if rundir.rank_of(trace) == rank]
    if not mine:
        there = ", ".join(str(r) for r in sorted({rundir.rank_of(trace) for trace in traces}))
        raise UserError(f"{rundir.path}: rank {rank} has no trace; ranks that have: {there}")
    return mine[0]
