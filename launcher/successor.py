"""Whether a successor in a chain has anything to do: the door that its batch script calls before srun.

``python -uP -m launcher.successor PLANS --submission TOKEN`` ends with DONE where the run goes on, and with NOT_NEEDED
where it is done, was cancelled, failed for good, or where another job is there for it. Where the job before it was
ended without a word (killed, or its node was lost) what a requeue would be decided by is decided here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.chain import NOT_NEEDED, Chain
from launcher.runtime.errors import ExitCode, UserError, guarded
from launcher.runtime.pack.queue import Queue
from launcher.runtime.place import job_id
from launcher.runtime.plan import Plan
from launcher.runtime.policy import (
    ASKED,
    BROKE_DOWN,
    NEVER,
    OUT_OF_TIME,
    PREEMPTED,
    STOPPED,
    judge,
    limits_of,
    record,
    what_broke,
)
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.worker import read_plan
from launcher.runtime.world import array_element
from launcher.slurm_cli import Slurm, SlurmError

_LIVES = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "STOPPED", "REQUEUED", "REQUEUE_HOLD")
_CAUSES = {
    "PREEMPTED": (ExitCode.STOPPED_NOT_SAVED, PREEMPTED),
    "TIMEOUT": (ExitCode.STOPPED_NOT_SAVED, OUT_OF_TIME),
    "NODE_FAIL": (ExitCode.BUG, f"{BROKE_DOWN}: its node failed"),
    "BOOT_FAIL": (ExitCode.BUG, f"{BROKE_DOWN}: its node did not boot"),
}
"""What Slurm's state of an ended job says by itself, and the exit code that stands for it."""


def main() -> int:
    """The door; returns its exit code."""
    return guarded(lambda: _run(_arguments(), os.environ))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.successor", description="Whether this job is needed.")
    parser.add_argument("plans", type=Path, metavar="PLANS", help="file of plans, one a line")
    parser.add_argument("--submission", metavar="TOKEN", required=True, help="which submission the job is of")
    parser.add_argument("--packed", action="store_true", help="the job is a worker of packed members")
    return parser.parse_args()


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    job = job_id(env)
    if job is None:
        raise UserError("SLURM_JOB_ID is not set: this is called by a batch script of the launcher")
    element = array_element(env) or 0
    sweep = SweepDir(args.plans.parent.parent)
    chain = Chain.of(sweep, args.submission, job, element)
    slurm = Slurm(env) if shutil.which("scontrol", path=env.get("PATH")) else None
    cancelled = not sweep.read_cancelled().isdisjoint(chain.names)
    if args.packed:
        found = _of_worker(Queue(sweep.queue(args.plans.stem)), chain, slurm, cancelled=cancelled)
    else:
        plan = read_plan(args.plans, element)
        refused = any(sweep.was_refused(args.plans.stem, name) for name in chain.before)
        found = _of_run(plan, chain, slurm, cancelled=cancelled, refused=refused)
    if found is None:
        return ExitCode.DONE
    print(f"job {job} has nothing to do: {found.why}", file=sys.stderr)
    if found.for_good:
        chain.end(slurm)
    return NOT_NEEDED


@dataclass(frozen=True)
class _Idle:
    """Why a successor has nothing to do."""

    why: str
    for_good: bool = True
    """Whether those after it have nothing to do either."""


def _of_worker(queue: Queue, chain: Chain, slurm: Slurm | None, *, cancelled: bool) -> _Idle | None:
    """What its members have come to is their own affair: it goes on unless nothing waits, or it was cancelled."""
    if cancelled or "CANCELLED" in _states(chain, slurm).values():
        return _Idle("cancelled")
    dead = any(not queue.is_alive(worker) for worker in set(queue.claims().values()))
    return None if dead or queue.list_waiting() else _Idle("none of its runs waits", for_good=False)


def _of_run(plan: Plan, chain: Chain, slurm: Slurm | None, *, cancelled: bool, refused: bool) -> _Idle | None:
    rundir, events = plan.rundir, plan.rundir.attempt_events()
    state = rundir.state()
    if chain.superseded:
        return _Idle("its run was submitted anew")
    if state in ("COMPLETED", "CANCELLED"):
        return _Idle(f"its run is {state}")
    states = _states(chain, slurm)
    if lives := [name for name, slurms in states.items() if slurms in _LIVES]:
        return _Idle(f"job {lives[0]} is there for its run", for_good=False)
    givers = [str(event.get("job_id")) for event in events if event.get("next") == chain.job]
    if cancelled or "CANCELLED" in (states.get(name) for name in givers or chain.before):
        rundir.say_state("CANCELLED", "cancelled; the same command goes on")
        return _Idle("cancelled")
    if givers:
        return None  # the job before it knew why it ended; or this one was requeued
    if refused:
        return _Idle("its run was refused")
    return _judged(plan, chain, states, events)


def _judged(plan: Plan, chain: Chain, states: Mapping[str, str], events: Sequence[Mapping[str, Any]]) -> _Idle | None:
    """What a requeue would be decided by, for a run whose last job left no word of that."""
    rundir = plan.rundir
    starts = [event for event in events if event.get("event") == "start" and event.get("job_id") in chain.before]
    last = str(starts[-1]["job_id"]) if starts else chain.before[0]
    restarts = int(starts[-1].get("restarts") or 0) if starts else 0
    code, cause = _cause(rundir, last, restarts, states.get(last, ""), events)
    decision = judge(rundir, last, code, cause, limits_of(plan), restarts)
    if decision.requeue:
        record(rundir, last, decision.reason, successor=chain.job)
        return None
    if decision.failed:
        rundir.give_up(decision.reason)
    elif code not in NEVER and rundir.state() != "COMPLETED":
        rundir.say_state("PREEMPTED", f"{decision.reason}; the same command goes on")
    return _Idle(decision.reason)


def _cause(
    rundir: RunDir, job: str, restarts: int, slurms: str, events: Sequence[Mapping[str, Any]]
) -> tuple[int, str]:
    """The exit code of ``job`` and why it ended, by Slurm's word and that of its ranks."""
    if slurms in _CAUSES:
        return _CAUSES[slurms]
    ends = [event for event in events if event.get("event") == "end" and str(event.get("job_id")) == job]
    code, broken = what_broke(rundir, job, int(ends[-1].get("code") or 0) if ends else ExitCode.BUG, restarts)
    if code in STOPPED:
        return code, ASKED
    return code, f"{BROKE_DOWN}: {broken if ends else 'its job ended without a word'}"


def _states(chain: Chain, slurm: Slurm | None) -> dict[str, str]:
    """Slurm's states of the jobs before this one; those that it has forgotten, or cannot tell, are left out."""
    if slurm is None:
        return {}
    found: dict[str, str] = {}
    for name in chain.before:
        with suppress(SlurmError):
            found[name] = slurm.show_job(name).get("JobState", "")
    forgotten = [name for name in chain.before if name not in found]
    with suppress(SlurmError):
        found |= {name: state for name, state in slurm.history(forgotten).items() if name in forgotten}
    return found


if __name__ == "__main__":
    sys.exit(main())
