"""A job: from a plan to a finished run directory, in this process."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import yaml

from launcher.runtime.address import Machine, interface_to
from launcher.runtime.attempt import run_attempt
from launcher.runtime.bad_nodes import exclusions
from launcher.runtime.command.supervise import run_program
from launcher.runtime.console import Meter, logging_to
from launcher.runtime.environment import drift
from launcher.runtime.errors import ExitCode, Stopped, TrainingFailed, UserError
from launcher.runtime.files import write_atomic, write_json
from launcher.runtime.hang_report import flight_recorder_env
from launcher.runtime.lease import Lease, next_attempt, take
from launcher.runtime.opening import opening_line, show_config, whole_config
from launcher.runtime.outcome import Outcome
from launcher.runtime.plan import Plan
from launcher.runtime.progress import starts, without_progress
from launcher.runtime.redaction import scrubbed
from launcher.runtime.rendezvous import Meeting, Refused, Verdict, announce, attend, forget
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World, set_interface

if TYPE_CHECKING:  # imports numpy
    from launcher.runtime.trackers import Tracker

__all__ = ["Outcome", "claim", "run_job"]

log = logging.getLogger(__name__)

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times quicker, where PyYAML was built with libyaml
_COMPLETED = Verdict(code=ExitCode.DONE, message="COMPLETED already")


def run_job(
    plan: Plan,
    env: MutableMapping[str, str],
    stop: StopFlag,
    *,
    visible: bool = True,
    listener: Tracker | None = None,
    preflight: bool = False,
) -> Outcome:
    """Run one attempt of ``plan`` as the rank that ``env`` describes. A COMPLETED run is left as it is.

    Rank 0 decides for all: it takes the lock, claims the folder and numbers the attempt; the others learn from it
    where to meet, or that and why there is nothing to do.

    Args:
        env: this process's environment; the network interface to use is set in it where nobody has.
        visible: whether rank 0 shows its log and its progress on stderr too.
        listener: a tracker of the caller's on rank 0. It may end the run for good (``stop.end``): it has heard enough.
        preflight: try the nodes before the task is called, where the config says so and this is a step of Slurm's.

    Raises:
        UserError: the run directory is another run's, is in use, or the task refused its input.
        TrainingFailed: the training diverged. Both leave the run FAILED, with the reason in ``status.json``.
    """
    world = _world(plan, env)
    interface = plan.hardware.get("interface")
    if stop:  # asked while torch was being imported
        raise Stopped
    with ExitStack() as stack:
        lease: Lease | None = None
        if world.is_main:
            meeting, lease = _decide(plan, world, interface, stop, stack)
        else:
            meeting = attend(world, plan.rundir, stop)
        if meeting.verdict.code == ExitCode.DONE:
            return Outcome("COMPLETED", ExitCode.DONE, plan.rundir.read(plan.rundir.summary) or {})
        if meeting.verdict.code is not None:
            raise Refused(meeting.verdict.message, ExitCode(meeting.verdict.code))
        seen = visible and world.is_main
        console = stack.enter_context(logging_to(plan.rundir.log(world.rank), visible=seen))
        if seen:
            show_config(console, plan)
        meter = Meter(console, seen, partial(opening_line, plan, world))
        stack.callback(meter.close)
        if world.is_main and (changes := drift(plan.environment)):
            log.warning("the environment is not the one that was planned: %s", "; ".join(changes))
        if preflight and world.is_main:
            for one in exclusions(plan.rundir.attempt_events(), plan.settings().requeue.max_excluded):
                log.warning("this run avoids %s: %s", one.node, one.reason)
        for name, value in flight_recorder_env(plan.rundir.flight_prefix).items():
            env.setdefault(name, value)
        if world.nodes > 1 or interface:
            set_interface(env, interface, interface_to(meeting.address, Machine()) if meeting.address else None)
        if plan.argv is not None:
            return run_program(plan, world, stop, meter, meeting, lease, env, listener)
        preflight = preflight and world.source == "slurm" and plan.settings().preflight.enabled
        return run_attempt(plan, world, stop, meter, meeting, lease, listener, preflight=preflight)


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
    write_json(rundir.plan, plan.to_json(), settled=False)  # the lease is written next
    text = yaml.dump(whole_config(plan), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    write_atomic(rundir.config, text.encode(), durable=False)  # for people; nothing in it that the plan has not


def _world(plan: Plan, env: MutableMapping[str, str]) -> World:
    from launcher.runtime.distributed import require_device, visible_gpus  # imports torch

    device = plan.hardware["device"]
    require_device(device)
    gpus = visible_gpus() if device == "cuda" else None
    world = World.from_env(env, device, plan.hardware["micro_batch"], gpus=gpus)
    world.require_size(plan.hardware.get("nodes"), plan.hardware.get("tasks_per_node"))
    return world


def _decide(
    plan: Plan, world: World, interface: str | None, stop: StopFlag, stack: ExitStack
) -> tuple[Meeting, Lease | None]:
    """Rank 0: hold the run until ``stack`` ends, number the attempt, and tell the others, a refusal too."""
    try:
        verdict, lease = _verdict(plan, world, stop, stack)
        return announce(world, plan.rundir, verdict, interface), lease
    except BaseException as error:
        code = getattr(error, "code", ExitCode.BUG)
        if isinstance(error, KeyboardInterrupt):
            code = ExitCode.STOPPED_NOT_SAVED
        message = scrubbed(f"rank 0 on {world.node}: {error or type(error).__name__}")
        with suppress(OSError, UserError):  # what led here is told, not this
            announce(world, plan.rundir, Verdict(code=int(code), message=message), interface)
        raise


def _require_attempts_left(plan: Plan, world: World) -> None:
    """See that this start of a job may be tried: Slurm requeues some jobs without asking anybody.

    Raises:
        TrainingFailed: its starts are used up, or led nowhere; the run is FAILED.
    """
    if world.job_id is None:
        return
    rundir, limits = plan.rundir, plan.settings().requeue
    events = rundir.attempt_events()
    tried = starts(events, world.job_id)
    idle = without_progress(events, world.job_id, rundir.newest_step())
    if tried >= limits.max_attempts:
        reason = f"requeue.max_attempts={limits.max_attempts} attempts are used up"
    elif idle >= limits.max_without_progress:
        reason = f"{idle} attempts in a row made no progress; see logs"
    else:
        return
    rundir.give_up(reason)
    raise TrainingFailed(reason)


def _verdict(plan: Plan, world: World, stop: StopFlag, stack: ExitStack) -> tuple[Verdict, Lease | None]:
    rundir = plan.rundir
    try:
        if world.size > 1:
            forget(world, rundir)
        rundir.path.mkdir(parents=True, exist_ok=True)
        take_lease = take(rundir, world, stop, stack)
        claim(plan)
        if rundir.state() == "COMPLETED":
            return _COMPLETED, None
        _require_attempts_left(plan, world)
        rundir.sweep()
        rundir.log(0).parent.mkdir(exist_ok=True)
        rundir.log(0).open("a").close()  # before the others hear of it: can it be written at all
    except OSError as error:
        raise UserError(f"run directory {rundir.path}: {error.strerror or error}; choose launch.root=…") from error
    number = next_attempt(rundir)
    return Verdict(attempt=number), take_lease(number)
