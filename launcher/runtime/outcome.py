"""How an attempt ends that nothing went wrong in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.files import json_text, write_json
from launcher.runtime.plan import Plan
from launcher.runtime.signals import StopFlag

if TYPE_CHECKING:  # it imports torch
    from launcher.runtime.session import Session


_OWN = ("status", "step", "weights_sha256", "wall_s")
"""What a summary says of its run whatever the task calls its numbers."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: str
    """COMPLETED, PREEMPTED where it was asked to stop, or CANCELLED where it was asked to end for good."""
    code: ExitCode
    summary: dict[str, Any]


def summary_of(said: Any) -> dict[str, Any]:
    """What a task returned, as the summary takes it: numbers of torch and numpy become plain ones.

    Raises:
        UserError: it is no mapping, or JSON cannot hold it.
    """
    if said is not None and not isinstance(said, Mapping):
        raise UserError(f"the task returned a {type(said).__name__}: should be a mapping for the summary, or None")
    plain = {str(k): v.item() if getattr(v, "ndim", None) == 0 else v for k, v in (said or {}).items()}
    try:
        json_text(plain)
    except (TypeError, ValueError) as error:
        raise UserError(f"the task returned what the summary cannot hold: {error}") from None
    return plain


def finish(plan: Plan, session: Session, stop: StopFlag, extra: Mapping[str, Any], wall_s: float) -> Outcome:
    """Keep the weights, write the summary, close the trackers: the run is COMPLETED, or PREEMPTED and resumable."""
    if session.stopping and not session.complete:
        saved = session.settle()
        problem = session.save_problem
        if session.over:
            if session.world.is_main:
                session.write_status("CANCELLED", stop.reason or "ended by another rank")
                session.close_trackers({})
            return Outcome("CANCELLED", ExitCode.DONE, {})
        if session.world.is_main:
            said = f"step {session.step} is not saved: {problem}" if problem else "stopped on request"
            session.write_status("PREEMPTED", said)
            session.close_trackers({})
        return Outcome("PREEMPTED", ExitCode.STOPPED_SAVED if saved else ExitCode.STOPPED_NOT_SAVED, {})
    at_end = plan.settings().checkpoint.at_end or "state"
    weights = session.finish(at_end)
    memory = session.board.final()
    if plan.settings().profiler.kind == "steps":
        from launcher.runtime.trace.telling import tell

        tell(session)
    last = session.last
    summary = {
        "status": "COMPLETED",
        "step": session.step,
        "train_loss": last.get("train/loss"),
        "val_loss": last.get("val/loss"),
        "best_val_loss": session.best_metric,
        "samples_per_s": last.get("train/samples_per_s"),
        "tokens_per_s": last.get("train/tokens_per_s"),
        "mfu": last.get("train/mfu"),
        **memory,
        "weights_sha256": weights,
        "wall_s": round(wall_s, 3),
        **{name: value for name, value in extra.items() if name not in _OWN},
    }
    if session.world.is_main:
        session.close_trackers(summary)
        write_json(session.rundir.summary, summary, settled=False)  # the status is written next
        session.write_status("COMPLETED")
        session.tidy(at_end)  # last: a run without states that is not yet COMPLETED would start over
    return Outcome("COMPLETED", ExitCode.DONE, summary)
