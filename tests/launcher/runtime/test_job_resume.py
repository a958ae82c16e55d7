"""A job that was stopped, crashed or superseded: it goes on to the very same weights, and says from where."""

from __future__ import annotations

import json
import os
import threading

import pytest

from launcher.runtime import attempt
from launcher.runtime.checkpoint.reading import load
from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.errors import TrainingFailed, UserError
from launcher.runtime.files import write_json
from launcher.runtime.job import run_job
from launcher.runtime.lease import Superseded
from launcher.runtime.signals import StopFlag
from tests.launcher.runtime.saving import flip
from tests.launcher.runtime.toy_job import STEPS, board_losses, contents, events, losses, status


@pytest.mark.parametrize("at", [1, 3, STEPS])
def test_a_stopped_run_goes_on_to_the_very_same_weights(make_plan, run, uninterrupted, at):
    plan = make_plan(end="stop", at=at)
    stopped = run(plan)
    assert (stopped.state, stopped.code) == ("PREEMPTED", 75)
    assert (status(plan)["state"], status(plan)["step"]) == ("PREEMPTED", at)
    assert not plan.rundir.summary.exists()
    finished = run(make_plan())
    assert (finished.state, finished.code) == ("COMPLETED", 0)
    for name in ("weights_sha256", "train_loss", "val_loss", "best_val_loss", "step"):
        assert finished.summary[name] == json.loads(uninterrupted.rundir.summary.read_text())[name]
    assert losses(plan) == losses(uninterrupted)
    assert board_losses(plan) == board_losses(uninterrupted)
    assert [event[:3] for event in events(plan)] == [
        ("start", 1, None), ("end", 1, 75), ("start", 2, None), ("end", 2, 0),
    ]  # fmt: skip


def test_a_run_stopped_again_and_again_goes_on_to_the_very_same_weights(make_plan, run, uninterrupted):
    for at in (1, 2, 4, 5):
        assert run(make_plan(end="stop", at=at)).state == "PREEMPTED"
    plan = make_plan()
    assert run(plan).summary["weights_sha256"] == run(uninterrupted).summary["weights_sha256"]
    assert losses(plan) == losses(uninterrupted)
    assert board_losses(plan) == board_losses(uninterrupted)


@pytest.mark.parametrize("every_steps", [None, 2])
def test_a_crashed_run_goes_on_from_its_last_save_without_a_step_twice(make_plan, run, uninterrupted, every_steps):
    plan = make_plan(end="crash", at=5, every_steps=every_steps)
    with pytest.raises(ZeroDivisionError):
        run(plan)
    assert [step for step, _ in losses(plan)] == [1, 2, 3, 4, 5]
    finished = run(make_plan())
    assert finished.summary["weights_sha256"] == run(uninterrupted).summary["weights_sha256"]
    assert losses(plan) == losses(uninterrupted)
    assert board_losses(plan) == board_losses(uninterrupted)


def test_a_run_goes_on_past_a_damaged_checkpoint_and_says_so(make_plan, run, uninterrupted):
    plan = make_plan(end="crash", at=5, every_steps=2)
    with pytest.raises(ZeroDivisionError):
        run(plan)
    newest = plan.rundir.list_checkpoints("step")[0]
    os.truncate(newest / "model.safetensors", 100)
    assert run(make_plan()).summary["weights_sha256"] == run(uninterrupted).summary["weights_sha256"]
    assert f"{newest}: model.safetensors is damaged" in plan.rundir.log(0).read_text()
    begun = plan.rundir.attempt_events()[2]
    assert begun["passed_over"] == [
        f"checkpoint {newest}: model.safetensors is damaged (size or checksum differs from the manifest)"
    ]
    assert (begun["step"], begun["from"]) == (2, "step-000000000002.a0001")
    assert losses(plan) == losses(uninterrupted)


def test_weights_kept_at_the_end_of_a_run_stopped_at_its_last_step(make_plan, run, uninterrupted):
    run(make_plan(end="stop", at=STEPS, at_end="weights"))
    plan = make_plan(at_end="weights")
    digest = run(plan).summary["weights_sha256"]
    assert digest == run(uninterrupted).summary["weights_sha256"]
    assert weights_sha256(load(plan.rundir.list_checkpoints("final")[0])["model"]) == digest
    assert plan.rundir.list_checkpoints("step") == []


def begun(plan):
    """Attempt, step, origin and restarts of each start."""
    starts = [e for e in plan.rundir.attempt_events() if e["event"] == "start"]
    return [(e["attempt"], e["step"], e.get("from"), e["restarts"]) for e in starts]


def test_each_start_says_from_where_it_goes_on(make_plan, run):
    slurm = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    slurm |= {"SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1"}
    plan = make_plan(end="stop", at=2)
    run(plan, slurm)
    run(make_plan(end="stop", at=5), slurm | {"SLURM_RESTART_COUNT": "1"})
    run(make_plan(), slurm | {"SLURM_RESTART_COUNT": "2"})
    one, two = (f"step-{step:012d}.a{attempt:04d}" for step, attempt in ((2, 1), (5, 2)))
    assert begun(plan) == [(1, 0, None, 0), (2, 2, one, 1), (3, 5, two, 2)]
    ends = [(e["step"], e["code"]) for e in plan.rundir.attempt_events() if e["event"] == "end"]
    assert ends == [(2, 75), (5, 75), (STEPS, 0)]
    assert {e["job_id"] for e in plan.rundir.attempt_events()} == {"17"}


def test_an_attempt_that_died_before_it_said_that_it_starts_has_had_its_number(make_plan, run):
    plan = make_plan(end="stop", at=2)
    run(plan)
    write_json(plan.rundir.lease, plan.rundir.read(plan.rundir.lease) | {"attempt": 2, "token": "of the dead"})
    run(make_plan())
    assert [start[0] for start in begun(plan)] == [1, 3]


def test_the_save_under_way_is_finished_when_the_task_breaks_down(make_plan, run, monkeypatch):
    told, real_sync, real_record = threading.Event(), os.fsync, attempt.record_failure

    def sync(descriptor):
        if threading.current_thread().name == "save":
            assert told.wait(60)
        real_sync(descriptor)

    def record(*args):
        real_record(*args)
        told.set()

    def ended(self):
        at_end.extend(path.name for path in plan.rundir.list_checkpoints("step"))
        real_ended(self)

    at_end, real_ended = [], attempt._Attempt.ended
    plan = make_plan(end="crash", at=5, every_steps=4, best=False)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(os, "fsync", sync)
        patch.setattr(attempt, "record_failure", record)
        patch.setattr(attempt._Attempt, "ended", ended)
        run(plan)
    assert at_end == ["step-000000000004.a0001"]


def test_where_all_checkpoints_are_damaged_it_refuses_and_starts_over_only_when_told_to(make_plan, run, uninterrupted):
    plan = make_plan(end="stop", at=3)
    run(plan)
    (saved,) = plan.rundir.list_checkpoints("step")
    flip(saved / "model.safetensors")
    for _ in range(2):
        with pytest.raises(UserError, match=r"checkpoint\.restart_if_damaged=true$"):
            run(make_plan())
    assert events(plan)[-1][2] == 1 and saved.exists()
    finished = run(make_plan(restart_if_damaged=True))
    assert finished.summary["weights_sha256"] == run(uninterrupted).summary["weights_sha256"]
    assert begun(plan)[-1] == (4, 0, None, 0)


# It is superseded


@pytest.fixture
def taken_over_at(monkeypatch):
    """``taken_over_at(plan, step)``: when that step is logged, another attempt takes the run and writes its status."""
    monkeypatch.setattr(attempt, "CHECK_S", 1e6)  # the watch's own look would end this process

    def arrange(plan, step):
        from launcher.runtime.session import Session

        real = Session.log

        def log(session, values, at):
            real(session, values, at)
            if at == step:
                write_json(plan.rundir.lease, {"token": "another", "attempt": 9, "host": "there"})
                session._status_at = float("inf")  # the status of a second ago is not written any more
                write_json(plan.rundir.status, {"state": "RUNNING", "of": "the other"})

        monkeypatch.setattr(Session, "log", log)

    return arrange


@pytest.mark.parametrize(
    "changes", [{}, {"every_steps": 1}, {"end": "stop"}, {"end": "crash"}, {"end": "refuse"}], ids=str
)
def test_a_superseded_attempt_writes_nothing_but_the_line_of_its_end(make_plan, run, taken_over_at, changes):
    plan = make_plan(trackers=(), **{"at": 4} | changes)
    taken_over_at(plan, 3)
    with pytest.raises(Exception) as caught:
        run(plan)
    assert isinstance(caught.value, Superseded) or changes.get("end") in ("crash", "refuse")
    assert status(plan) == {"state": "RUNNING", "of": "the other"}
    assert not plan.rundir.summary.exists()
    assert all(path.name < "step-000000000004" for path in plan.rundir.list_checkpoints("step"))
    last = plan.rundir.attempt_events()[-1]
    assert (last["event"], last["attempt"]) == ("end", 1)


def test_an_attempt_superseded_before_it_began_leaves_no_trace(make_plan, run, monkeypatch):
    plan = make_plan(end="stop", at=2)
    run(plan)
    plan.rundir.summary.write_text("{}")
    before = contents(plan.rundir.path)
    real = attempt._Attempt._begin

    def begin(self, search):
        write_json(plan.rundir.lease, {"token": "another", "attempt": 9, "host": "there"})
        real(self, search)

    monkeypatch.setattr(attempt._Attempt, "_begin", begin)
    with pytest.raises(Superseded, match="attempt 9 on there"):
        run(make_plan())
    after = contents(plan.rundir.path)
    kept = ("attempts.jsonl", "status.json", "summary.json", "metrics.csv")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert len(plan.rundir.list_checkpoints("step")) == 1
    assert json.loads(after["lease.json"])["attempt"] == 9


@pytest.mark.parametrize(
    ("starts", "limits", "said"),
    [
        (5, {}, "5 attempts in a row made no progress"),
        (3, {"max_attempts": 3}, "requeue.max_attempts=3 attempts are used up"),
    ],
)
def test_a_job_that_slurm_started_too_often_for_nothing_is_failed(make_plan, starts, limits, said):
    plan = make_plan()
    plan.execution["requeue"] = limits
    plan.rundir.path.mkdir(parents=True)
    for number in range(1, starts + 1):
        plan.rundir.add_attempt_event(event="start", attempt=number, job_id="7", step=0, **{"from": None})
    with pytest.raises(TrainingFailed, match=said):
        run_job(plan, {"SLURM_JOB_ID": "7"}, StopFlag())
    assert said in status(plan)["reason"] and status(plan)["state"] == "FAILED"
    assert len(events(plan)) == starts
    assert run_job(plan, {"SLURM_JOB_ID": "8"}, StopFlag()).state == "COMPLETED"  # somebody has asked for it again
