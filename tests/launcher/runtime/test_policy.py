"""What becomes of a run, or of a packed worker, whose processes are gone: told by files alone, as tables."""

from __future__ import annotations

import signal
import time

import pytest

from launcher.runtime.pack.queue import Queue
from launcher.runtime.pack.trying import judge_worker
from launcher.runtime.policy import ASKED, OUT_OF_TIME, PREEMPTED, close_status, killed_or_code, settle
from launcher.runtime.settings import RequeueSettings
from tests.launcher.runtime.ranks import toy_plan

KILLED = 128 + signal.SIGKILL


@pytest.fixture
def plan(tmp_path):
    """One that job ``w`` has begun with once."""
    made = toy_plan(tmp_path)
    made.rundir.path.mkdir(parents=True)
    began(made)
    return made


def began(plan, step=0, **values):
    number = 1 + len(plan.rundir.attempt_events())
    plan.rundir.add_attempt_event(
        event="start", attempt=number, job_id="w", step=step, incarnation=f"w.{number}", **values
    )


def reasons(plan):
    return [event["reason"] for event in plan.rundir.attempt_events() if event["event"] == "requeue"]


@pytest.mark.parametrize(
    ("code", "out_of_time", "limits", "answer", "said"),
    [
        (75, False, {}, (75, False), None),  # somebody stopped this one process
        (76, False, {"max_without_progress": 2}, (76, True), ASKED),
        (75, True, {"max_without_progress": 2}, (75, True), OUT_OF_TIME),
        (75, True, {"max_without_progress": 2, "max_timeouts": 0}, (75, False), None),
        (KILLED, False, {"max_without_progress": 2}, (KILLED, True), "broke down: a rank was killed (SIGKILL)"),
        (70, False, {"max_without_progress": 2}, (70, True), "broke down: exit code 70"),
        (70, False, {"max_without_progress": 1}, (3, False), None),
        (KILLED, False, {"max_attempts": 1}, (3, False), None),
        (3, False, {}, (3, False), None),
        (1, False, {}, (1, False), None),
    ],
)
def test_what_becomes_of_a_run(plan, code, out_of_time, limits, answer, said):
    plan.execution["requeue"] = limits
    assert settle(plan, "w", code, 0, out_of_time=out_of_time) == answer
    assert reasons(plan) == ([said] if said else [])
    given_up = answer == (3, False) and code != 3
    assert (plan.rundir.state() == "FAILED") is given_up
    if given_up:
        assert (
            "see logs" in plan.rundir.read_status()["reason"]
            and plan.rundir.read(plan.rundir.summary)["status"] == "FAILED"
        )


def test_a_run_that_is_completed_is_not_tried_again_whatever_killed_it(plan):
    plan.rundir.write_status(state="COMPLETED")
    assert settle(plan, "w", KILLED, 0)[1] is False and reasons(plan) == []


def test_tries_are_counted_until_one_leads_nowhere(plan):
    plan.execution["requeue"] = {"max_without_progress": 2, "max_attempts": 99}
    assert settle(plan, "w", KILLED, 0) == (KILLED, True)
    began(plan, step=4)  # the first one had got on
    assert settle(plan, "w", KILLED, 0) == (KILLED, True)
    began(plan, step=4)
    assert settle(plan, "w", KILLED, 0) == (3, False)


@pytest.mark.parametrize(
    ("said", "age_s", "codes", "code", "state", "reason"),
    [
        (None, 0, [-9], KILLED, "FAILED", "rank 0 ended by SIGKILL"),
        (None, 0, [70], 70, "FAILED", "rank 0: code 70"),
        (None, 0, [0, -9], KILLED, "FAILED", "rank 1 ended by SIGKILL"),
        (None, 0, [75], 75, "PREEMPTED", "stopped before its first step"),
        ("RUNNING", 0, [-9], KILLED, "FAILED", "rank 0 ended by SIGKILL"),
        ("RUNNING", 0, [76], 76, "PREEMPTED", "stopped on request"),
        ("PREEMPTED", 0, [-9], KILLED, "PREEMPTED", "its own word"),
        ("FAILED", 0, [70], 70, "FAILED", "its own word"),
        ("COMPLETED", 0, [-9], KILLED, "COMPLETED", "its own word"),
        ("FAILED", 99, [-9], KILLED, "FAILED", "rank 0 ended by SIGKILL"),  # an earlier attempt's word
        ("PREEMPTED", 99, [75], 75, "PREEMPTED", "stopped on request"),
    ],
)
def test_the_last_word_of_a_run_that_could_not_say_it(plan, said, age_s, codes, code, state, reason):
    now = time.time()
    if said is not None:
        plan.rundir.write_status(state=said, reason="its own word", heartbeat=now - age_s, step=3)
    close_status(plan.rundir, codes, code, now - 10)
    status = plan.rundir.read_status()
    assert (status["state"], status["reason"]) == (state, reason)
    assert status.get("step") == (3 if said else None), "where it stood is kept"


@pytest.mark.parametrize(("code", "words"), [(70, "exit code 70"), (137, "a rank was killed (SIGKILL)"),
                                             (128 + 99, "a rank was killed (signal 99)")])  # fmt: skip
def test_codes_in_words(code, words):
    assert killed_or_code(code) == words


@pytest.mark.parametrize(
    ("record", "code", "cause", "limits", "requeue", "failed"),
    [
        (["start", "began"], 75, PREEMPTED, {}, True, False),
        (["start", "began"], KILLED, "broke down: a rank was killed", {"max_without_progress": 1}, True, False),
        (["start"], KILLED, "broke down: a rank was killed", {"max_without_progress": 1}, False, True),
        ([], KILLED, "broke down: a rank was killed", {"max_without_progress": 1}, False, True),
        (["start", "requeue", "start"], 70, "broke down: x", {"max_without_progress": 3}, True, False),
        (["start", "requeue", "start"], 70, "broke down: x", {"max_without_progress": 2}, False, True),
        (["start", "began", "requeue", "start"], 70, "broke down: x", {"max_without_progress": 2}, True, False),
        (["start", "began", "requeue", "start", "began"], 75, PREEMPTED, {"max_attempts": 2}, False, True),
        (["start", "began"], 3, "broke down: x", {}, False, False),
        (["start", "began"], 75, OUT_OF_TIME, {"max_timeouts": 0}, False, False),
    ],
)
def test_a_worker_is_started_again_while_its_starts_lead_to_members(
    tmp_path, record, code, cause, limits, requeue, failed
):
    queue = Queue(tmp_path)
    queue.fill([])
    led_on = restarts = 0
    for event in record:
        if event == "start":
            queue.add_event("w", "start", restarts=restarts, step=led_on)
        else:
            queue.add_event("w", event)
        led_on += event == "began"
        restarts += event == "requeue"
    decision = judge_worker(queue, "w", code, cause, RequeueSettings(**limits), restarts)
    assert (decision.requeue, decision.failed) == (requeue, failed), decision
    assert isinstance(decision.reason, str) and decision.reason
