"""What a run says of its own traces at its end: ``traces/report.txt``, and a text for the trackers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.runtime.files import write_atomic
from launcher.runtime.trace.report import explain

if TYPE_CHECKING:  # it imports torch
    from launcher.runtime.session import Session

log = logging.getLogger(__name__)

_TOP = 15
_LAST_TRACE_S = 60.0
"""How long a run that is done waits for its last trace."""
_LARGEST_BYTES = 32 << 20
"""Compressed; to read a larger one would hold up the end of the run."""


def tell(session: Session) -> None:
    """Explain the newest trace of the lowest rank that recorded, on rank 0. What goes wrong is only said."""
    session.profiler.close(_LAST_TRACE_S)
    traces = session.rundir.list_traces() if session.world.is_main else []
    if not traces:
        return
    try:
        text = _explained(traces[0], session)
    except Exception as error:  # a run that has trained must not fail because its trace cannot be told
        log.warning("the trace cannot be explained: %s: %s", type(error).__name__, error)
        return
    if text:
        session.log({"traces/report": f"```\n{text}```"}, session.step)


def _explained(trace: Path, session: Session) -> str:
    """The report, which is written too; empty where the trace is too large."""
    if trace.stat().st_size > _LARGEST_BYTES:
        log.info("%s is too large to be explained while the run ends", trace)
        return ""
    report = explain(trace)
    text = report.text(_TOP)
    write_atomic(session.rundir.trace_report, text.encode())
    log.info("%s: %s", session.rundir.trace_report, report.verdicts[0].words)
    return text
