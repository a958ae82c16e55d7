"""What a run says of its own traces at its end: ``traces/report.txt``, and a text for the trackers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from launcher.runtime.errors import UserError
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
    if traces[0].stat().st_size > _LARGEST_BYTES:
        log.info("%s is too large to be explained while the run ends", traces[0])
        return
    try:
        report = explain(traces[0])
        write_atomic(session.rundir.trace_report, report.text(_TOP).encode())
    except (OSError, UserError) as error:
        log.warning("the trace cannot be explained: %s", error)
        return
    log.info("%s: %s", session.rundir.trace_report, report.verdicts[0].words)
    session.log({"traces/report": f"```\n{report.text(_TOP)}```"}, session.step)
