"""The session of a drill: it ends after so many steps, waits to be interrupted, and changes nothing that is learned."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest

from launcher.runtime.plan import Plan
from launcher.runtime.progress import FIRST_STEP, HELD
from slurm.processes import wait_until
from tests.launcher.runtime.toy_job import losses, status


@pytest.fixture
def drilled(make_plan):
    """``drilled(stop_after=4, hold_at=[2])``: a plan of the toy job, which alone would do six steps."""

    def make(root: str = "runs", changes: dict[str, Any] | None = None, **drill: Any) -> Plan:
        plan = make_plan(root=root, **(changes or {}))
        return replace(plan, execution={**plan.execution, "drill": drill})

    return make


def told(plan: Plan, event: str) -> list[tuple[int, int]]:
    """Attempt and step of each such event."""
    return [(e["attempt"], e["step"]) for e in plan.rundir.attempt_events() if e["event"] == event]


def interrupt(plan: Plan) -> threading.Thread:
    """Ask this process to stop as soon as the run waits for it."""

    def ask() -> None:
        assert wait_until(lambda: told(plan, HELD), 60)
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.parametrize("steps", [1, 4, 6, 100])
def test_the_run_is_complete_after_so_many_steps_and_at_most_those_of_its_task(run, drilled, steps):
    plan = drilled(stop_after=steps)
    outcome = run(plan)
    last = min(steps, 6)
    assert (outcome.state, outcome.code, outcome.summary["step"]) == ("COMPLETED", 0, last)
    assert [step for step, _ in losses(plan)] == list(range(1, last + 1))
    assert len(outcome.summary["weights_sha256"]) == 64 and status(plan)["state"] == "COMPLETED"
    assert told(plan, FIRST_STEP) == [(1, 1)]


def test_the_steps_are_those_of_the_whole_run(run, drilled, uninterrupted):
    plan = drilled(stop_after=3)
    run(plan)
    assert losses(plan) == losses(uninterrupted)[:3]


def test_it_waits_to_be_interrupted_once_and_ends_with_the_same_bits(run, drilled):
    whole = run(drilled("whole", stop_after=5))
    plan = drilled(stop_after=5, hold_at=[2, 9])
    thread = interrupt(plan)
    stopped = run(plan)
    thread.join()
    assert (stopped.state, plan.rundir.newest_step()) == ("PREEMPTED", 2)
    done = run(plan)
    assert done.state == "COMPLETED" and done.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert (told(plan, HELD), told(plan, FIRST_STEP)) == ([(1, 2)], [(1, 1), (2, 3)])


def test_whoever_nobody_interrupts_goes_on(run, drilled):
    plan = drilled(stop_after=3, hold_at=[1, 2], hold_s=0.01)
    assert run(plan).state == "COMPLETED"
    assert told(plan, HELD) == [(1, 1), (1, 2)]
    assert plan.rundir.log(0).read_text().count("nobody interrupted the run") == 2


def test_a_run_that_is_stopped_at_its_last_step_is_complete(run, drilled):
    plan = drilled(changes={"end": "stop", "at": 3}, stop_after=3)
    assert run(plan).state == "COMPLETED"


def test_without_a_drill_the_session_is_the_plain_one(run, make_plan):
    plan = make_plan()
    run(plan)
    assert told(plan, FIRST_STEP) == []
