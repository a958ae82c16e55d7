"""``task=command``: any program as a task.

Each rank starts the program in the folder that jobs run in, with its place in the world, its config and its run
directory in the environment (``environment``). Rank 0 holds the session for all of them: what its program writes to
``$LAUNCHER_METRICS`` is logged, and says what is saved. A stop is forwarded as SIGUSR2; the program answers with its
exit code: 0 done, 75 saved and to be run again (EX_TEMPFAIL, sysexits.h), 76 stopped and not saved.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher.runtime.attempt import run_attempt
from launcher.runtime.command.peers import Peers
from launcher.runtime.command.program import Program
from launcher.runtime.command.told import Told
from launcher.runtime.console import Meter
from launcher.runtime.errors import EndsWith, ExitCode, UserError
from launcher.runtime.failures import PeerLost, record_failure
from launcher.runtime.files import write_json
from launcher.runtime.lease import Lease
from launcher.runtime.outcome import Outcome
from launcher.runtime.plan import Plan
from launcher.runtime.rendezvous import Meeting
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World

if TYPE_CHECKING:  # it imports torch
    from launcher.runtime.session import Session
    from launcher.runtime.trackers import Tracker

_POLL_S = 0.2
_HEARD_S = 1.0
"""Where Slurm signals all processes of a step the program was asked already: it may be on its way out."""
_ENDS = (ExitCode.DONE, ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED)
"""Exit codes with which a program may end."""
_FINAL = (ExitCode.USAGE, ExitCode.TRAINING_FAILED)
"""Exit codes of a program that no further attempt would change; USER_ERROR is one until a step was logged."""


class ProgramFailed(EndsWith):
    """The program ended with something else than it may; ``code`` says whether another attempt may help."""


def run_program(
    plan: Plan,
    world: World,
    stop: StopFlag,
    meter: Meter,
    meeting: Meeting,
    lease: Lease | None,
    env: Mapping[str, str],
    listener: Tracker | None = None,
) -> Outcome:
    """As ``run_attempt``, for a plan whose task is a program; torch's process group is left to the program."""
    peers = Peers(world, meeting.store)
    if world.is_main:  # before it tells the port, which the others wait for
        write_json(plan.rundir.program_config, plan.config_values())
        plan.rundir.program_metrics.write_text("")
    told = {**env, **environment(plan, world, meeting, peers.port())}
    if world.is_main:
        task = partial(_lead, plan, peers, told)
        return run_attempt(plan, world.alone(), stop, meter, replace(meeting, store=None), lease, listener, task)
    code = _follow(plan, peers, told, meeting.verdict.attempt, stop)
    return Outcome("COMPLETED" if code == ExitCode.DONE else "PREEMPTED", code, {})


def environment(plan: Plan, world: World, meeting: Meeting, port: int) -> dict[str, str]:
    """What the program finds in its environment: where it stands, as torchrun tells it, and what is ours.

    Source: torch docs, "torchrun", Environment Variables.

    Args:
        port: of rank 0's node, for a process group of the program's own.
    """
    rundir = plan.rundir
    told = {
        "LAUNCHER_CONFIG": str(rundir.program_config),
        "LAUNCHER_RUN_DIR": str(rundir.path),
        "LAUNCHER_METRICS": str(rundir.program_metrics) if world.is_main else os.devnull,
        "LAUNCHER_ATTEMPT": str(meeting.verdict.attempt),
        "LAUNCHER_STEP": str(rundir.newest_step()),
    }
    if world.source != "torchrun":  # which has told the rest
        told |= {
            "RANK": str(world.rank),
            "WORLD_SIZE": str(world.size),
            "LOCAL_RANK": str(world.local_rank),
            "LOCAL_WORLD_SIZE": str(world.size // world.nodes),
            "NODE_RANK": str(world.node_rank),
        }
        told |= {"MASTER_ADDR": meeting.address or "127.0.0.1", "MASTER_PORT": str(port)}
    return told


def _lead(plan: Plan, peers: Peers, env: Mapping[str, str], session: Session) -> dict[str, Any]:
    """The task of rank 0: run the program with the session of all, and wait for the programs of the other ranks.

    Raises:
        ProgramFailed: it did not end as it may.
    """
    session.restore()
    begun_at = session.step
    told = Told(session, plan.rundir.program_metrics)

    def stopped() -> bool:
        told.take()
        return session.should_stop()

    with Program(_argv(plan), env) as program:
        code = _end_of(program, peers, stopped)
    peers.ended(code)
    told.take(last=True)
    ended = [_understood(code, peers.world, told.lines > 0), *_others(peers, session)]
    session.stopping = any(code != ExitCode.DONE for code in ended)  # whoever was asked to stop may have been done
    if session.stopping and ExitCode.STOPPED_NOT_SAVED not in ended:
        session.save({"step": max(session.step, begun_at + 1)})  # one that tells no steps has come a step further
    return told.numbers


def _follow(plan: Plan, peers: Peers, env: Mapping[str, str], attempt: int, stop: StopFlag) -> ExitCode:
    """Any other rank: run the program; returns DONE, STOPPED_SAVED or STOPPED_NOT_SAVED.

    Raises:
        ProgramFailed: it did not end as it may. The run directory has the reason.
    """
    try:
        with Program(_argv(plan), env) as program:
            code = _end_of(program, peers, lambda: bool(stop))
        peers.ended(code)
        begun = plan.rundir.read_status().get("step", 0) > plan.rundir.newest_step()
        return _understood(code, peers.world, begun)
    except UserError as error:
        record_failure(plan.rundir, peers.world, attempt, error, error.code)
        raise


def _argv(plan: Plan) -> list[str]:
    assert plan.argv is not None
    return plan.argv


def _end_of(program: Program, peers: Peers, stopped: Callable[[], bool]) -> int:
    """The exit code of ``program``, which is asked to stop once, when this rank or another one is."""
    asked = False
    while (code := program.wait(_POLL_S)) is None:
        if (stopped() or peers.asked()) and not asked:
            asked = True
            peers.ask_to_stop()
            if program.wait(_HEARD_S) is None:
                program.signal(signal.SIGUSR2)
    if code in _ENDS or not (asked or stopped() or peers.asked()):
        return code
    peers.ask_to_stop()
    return ExitCode.STOPPED_NOT_SAVED  # whatever it, or what it is wrapped in, makes of being stopped


def _others(peers: Peers, session: Session) -> list[ExitCode]:
    """How the other ranks' programs ended, once all have.

    Raises:
        PeerLost: one of them failed; its rank has told why.
    """
    while len(ended := peers.others()) < peers.world.size - 1:  # a rank that was killed takes this one down with it
        session.should_stop()
        time.sleep(_POLL_S)
    for rank, code in ended.items():
        if code not in _ENDS:
            raise PeerLost(f"the program of rank {rank} ended with {_words(code)}; see its log")
    return [ExitCode(code) for code in ended.values()]


def _understood(code: int, world: World, logged: bool) -> ExitCode:
    """What the exit code of a program means.

    Raises:
        ProgramFailed: it failed. A Python program that raises ends with 1 whatever was wrong: before the first step of
            an attempt that is taken for the user's mistake, after it for something that may not come again.
    """
    if code in _ENDS:
        return ExitCode(code)
    said = f"the program ended with {_words(code)}; see logs/rank{world.rank}.log"
    final = code in _FINAL or (code == ExitCode.USER_ERROR and not logged)
    raise ProgramFailed(said, ExitCode(code) if final else ExitCode.BUG)


def _words(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
