"""A job: from a plan to a finished run directory, in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from launcher.runtime.console import Meter, logging_to
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.files import write_atomic, write_json
from launcher.runtime.plan import Plan, resolve_name
from launcher.runtime.redaction import redacted
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: str
    """COMPLETED, or PREEMPTED where it was asked to stop."""
    code: ExitCode
    summary: dict[str, Any]


def run_job(plan: Plan, env: Mapping[str, str], stop: StopFlag) -> Outcome:
    """Run one attempt of ``plan`` as the rank that ``env`` describes. A COMPLETED run is left as it is.

    Raises:
        UserError: the run directory is another run's, is in use, or the task refused its input.
        TrainingFailed: the training diverged. Both leave the run FAILED, with the reason in ``status.json``.
    """
    from launcher.runtime.distributed import process_group, require_device  # imports torch

    hardware = plan.hardware
    world = World.from_env(env, hardware["device"], hardware["micro_batch"])
    require_device(world.device)
    rundir = plan.rundir
    with ExitStack() as stack:
        try:
            if world.is_main:
                rundir.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(rundir.lock())
                claim(plan)
                if rundir.state() == "COMPLETED":
                    return Outcome("COMPLETED", ExitCode.DONE, rundir.read(rundir.summary) or {})
            console = stack.enter_context(logging_to(rundir.log(world.rank), visible=world.is_main))
        except OSError as error:
            raise UserError(f"run directory {rundir.path}: {error.strerror or error}; choose launch.root=…") from error
        meter = Meter(console, visible=world.is_main)
        stack.callback(meter.close)
        stack.enter_context(process_group(world))
        return _attempt(plan, world, stop, meter)


def claim(plan: Plan) -> None:
    """Write ``plan.json`` and ``config.yaml`` into the run directory, whose run has the same science and is not done.

    Raises:
        UserError: the folder belongs to a run of another science.
    """
    rundir = plan.rundir
    if rundir.plan.exists() and not plan.same_science(Plan.read(rundir)):
        raise UserError(f"run directory {rundir.path} belongs to another config; move it away or change launch.name")
    if rundir.state() == "COMPLETED":
        return
    write_json(rundir.plan, plan.to_json())
    config = redacted(plan.config_values() | {k: v for k, v in plan.execution.items() if k != "task"})
    write_atomic(rundir.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())


def _attempt(plan: Plan, world: World, stop: StopFlag, meter: Meter) -> Outcome:
    rundir = plan.rundir
    stop.patient = False  # until there is a step to save
    attempt = 1 + sum(event.get("event") == "start" for event in rundir.attempt_events())
    started = time.monotonic()
    if world.is_main:
        rundir.summary.unlink(missing_ok=True)  # an earlier attempt's, which failed
    _event(rundir, world, "start", attempt, step=None)
    session = _session(plan, world, stop, meter, attempt)
    reason, code = "", ExitCode.BUG
    try:
        if world.is_main:
            session.write_status("RUNNING")
        extra = resolve_name(plan.target)(session) or {}
        outcome = _finish(plan, session, extra, time.monotonic() - started)
        reason, code = outcome.state, outcome.code
        return outcome
    except (UserError, KeyboardInterrupt) as error:
        reason, code = str(error) or "interrupted", getattr(error, "code", ExitCode.STOPPED_NOT_SAVED)
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        log.exception("the task raised")
        raise
    finally:
        if code not in (ExitCode.DONE, ExitCode.STOPPED_SAVED):
            _fail(world, session, reason, code)
        _event(rundir, world, "end", attempt, step=session.step, reason=reason, code=int(code))


def _session(plan: Plan, world: World, stop: StopFlag, meter: Meter, attempt: int) -> Any:
    from launcher.runtime.session import Session
    from launcher.runtime.trackers import Tracker, start_trackers

    settings = plan.settings()

    def open_trackers(step: int) -> list[Tracker]:
        values = redacted(plan.config_values())
        return start_trackers(settings.tracker, plan.rundir, values, redacted(plan.science), step)

    return Session(
        plan.config(),
        world,
        plan.rundir,
        settings,
        attempt=attempt,
        stop=stop,
        meter=meter,
        open_trackers=open_trackers,
    )


def _finish(plan: Plan, session: Any, extra: Mapping[str, Any], wall_s: float) -> Outcome:
    """Keep the weights, write the summary, close the trackers: the run is COMPLETED, or PREEMPTED and resumable."""
    if session.stopping:
        if session.world.is_main:
            session.write_status("PREEMPTED", "stopped on request")
            session.close_trackers({})
        saved = session.saved_step == session.step
        return Outcome("PREEMPTED", ExitCode.STOPPED_SAVED if saved else ExitCode.STOPPED_NOT_SAVED, {})
    weights = session.finish(plan.settings().checkpoint.at_end or "state")
    last = session.last
    summary = {
        "status": "COMPLETED",
        "step": session.step,
        "train_loss": last.get("train/loss"),
        "val_loss": last.get("val/loss"),
        "best_val_loss": session.best_metric,
        "samples_per_s": last.get("train/samples_per_s"),
        "weights_sha256": weights,
        "wall_s": round(wall_s, 3),
        **extra,
    }
    if session.world.is_main:
        session.close_trackers(summary)
        write_json(session.rundir.summary, summary)
        session.write_status("COMPLETED")
    return Outcome("COMPLETED", ExitCode.DONE, summary)


def _fail(world: World, session: Any, reason: str, code: ExitCode) -> None:
    if not world.is_main:
        return
    state = "PREEMPTED" if code == ExitCode.STOPPED_NOT_SAVED else "FAILED"
    session.write_status(state, reason)
    session.close_trackers({})
    if code != ExitCode.STOPPED_NOT_SAVED:
        summary = {"status": "FAILED", "step": session.step, "reason": reason}
        write_json(session.rundir.summary, summary)


def _event(rundir: RunDir, world: World, event: str, attempt: int, **values: Any) -> None:
    if not world.is_main:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    rundir.add_attempt_event(event=event, attempt=attempt, job_id=None, hosts=[world.host], time=now, **values)
