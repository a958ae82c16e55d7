"""A job from plan to finished run directory, and whose directory it is: each way in which it can end."""

from __future__ import annotations

import errno
import json
import os

import pytest
import yaml

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.checkpoint.saver import Saver
from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.errors import ExitCode, UserError, guarded
from launcher.runtime.job import run_job
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.trackers import csv_files
from tests.launcher.runtime.test_rundir import held_elsewhere
from tests.launcher.runtime.toy_job import ENDS, STEPS, board_losses, contents, events, losses, status

# It ends well


def test_a_completed_run_leaves_all_that_it_promises(make_plan, run):
    plan = make_plan()
    outcome = run(plan)
    rundir = plan.rundir
    assert (outcome.state, outcome.code) == ("COMPLETED", ExitCode.DONE)
    files = (
        "plan.json", "config.yaml", "status.json", "summary.json", "attempts.jsonl", "metrics.csv", "losses_log.csv",
        "timing_logs.csv", "loss_curve.png", "timing_curve.png", "logs/rank0.log",
    )  # fmt: skip
    assert contents(rundir.path).keys() >= set(files)
    assert list(rundir.tensorboard.glob("events.out.tfevents.*"))
    assert Plan.read(rundir) == plan
    assert (status(plan)["state"], status(plan)["step"]) == ("COMPLETED", STEPS)
    assert events(plan) == [("start", 1, None, ""), ("end", 1, 0, "COMPLETED")]
    assert [step for step, _ in losses(plan)] == list(range(1, STEPS + 1))
    assert [step for step, _ in board_losses(plan)] == list(range(1, STEPS + 1))


def test_the_summary_holds_the_numbers_that_runs_are_compared_by(make_plan, run):
    plan = make_plan()
    outcome = run(plan)
    summary = json.loads(plan.rundir.summary.read_text())
    assert outcome.summary == summary
    state = load(plan.rundir.list_checkpoints("step")[0])
    assert summary["weights_sha256"] == weights_sha256(state["model"])
    assert summary.pop("wall_s") >= 0 and summary.pop("peak_memory_bytes") > 1e6
    del summary["weights_sha256"]
    assert summary == {
        "status": "COMPLETED",
        "step": STEPS,
        "train_loss": losses(plan)[-1][1],
        "val_loss": 1.0 / STEPS,
        "best_val_loss": 1.0 / STEPS,
        "samples_per_s": None,
        "tokens_per_s": None,
        "mfu": None,
        "peak_memory_rank": None,
        "note": "well done",
    }


def test_the_config_is_written_without_its_secrets(make_plan, run):
    plan = make_plan(trackers=["tensorboard"])
    run(plan)
    config = yaml.safe_load(plan.rundir.config.read_text())
    assert (config["lr"], config["hub_token"]) == (0.01, "<redacted>")
    assert config["checkpoint"]["keep_last"] == 2
    told = {name for name, data in contents(plan.rundir.path).items() if b"hf-secret" in data}
    assert told == {"plan.json"}  # a run is started from it


def test_a_second_call_does_nothing(make_plan, run):
    plan = make_plan()
    first = run(plan)
    before = contents(plan.rundir.path)
    again = run(make_plan(keep_last=3))  # the same science otherwise executed
    assert (again.state, again.code, again.summary) == ("COMPLETED", ExitCode.DONE, first.summary)
    assert contents(plan.rundir.path) == before


@pytest.mark.parametrize(
    ("at_end", "kinds"), [("weights", {"best", "final"}), ("nothing", {"best"}), (None, {"best", "step"})]
)
def test_a_completed_run_keeps_the_checkpoints_it_was_told_to(make_plan, run, at_end, kinds):
    plan = make_plan(at_end=at_end, every_steps=2, trackers=[])
    run(plan)
    assert {kind for kind in ("step", "best", "final") if plan.rundir.list_checkpoints(kind)} == kinds


def test_a_task_may_log_nothing_and_return_nothing(make_plan, run):
    plan = make_plan(steps=0)
    outcome = run(plan)
    assert outcome.state == "COMPLETED"
    assert (outcome.summary["weights_sha256"], outcome.summary["step"]) == (None, 0)
    assert not plan.rundir.metrics.exists()


# It ends badly


@pytest.mark.parametrize(("end", "code"), [("refuse", 1), ("diverge", 3)])
def test_a_refusal_of_the_task_leaves_the_run_failed_with_its_reason(make_plan, run, end, code):
    plan = make_plan(end=end, at=3)
    assert guarded(lambda: run(plan).code) == code
    reason = str(ENDS[end])
    assert (status(plan)["state"], status(plan)["step"], status(plan)["reason"]) == ("FAILED", 3, reason)
    assert events(plan)[-1] == ("end", 1, code, reason)
    assert json.loads(plan.rundir.summary.read_text()) == {"status": "FAILED", "step": 3, "reason": reason}
    assert [step for step, _ in losses(plan)] == [1, 2, 3]
    assert plan.rundir.loss_curve.exists()


def test_where_the_disk_has_no_room_for_curves_all_else_is_said_of_the_end(make_plan, run, monkeypatch):
    def full(_: RunDir) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(csv_files, "draw_curves", full)
    plan = make_plan(end="refuse", at=3)
    assert guarded(lambda: run(plan).code) == 1
    reason = str(ENDS["refuse"])
    assert events(plan)[-1] == ("end", 1, 1, reason)
    assert json.loads(plan.rundir.summary.read_text()) == {"status": "FAILED", "step": 3, "reason": reason}
    assert "curves are not complete: [Errno 28] No space left on device" in plan.rundir.log(0).read_text()


def test_any_other_error_goes_on_to_the_caller_and_is_told_as_a_bug(make_plan, run):
    plan = make_plan(end="crash", at=3)
    with pytest.raises(ZeroDivisionError, match="oh"):
        run(plan)
    assert events(plan)[-1] == ("end", 1, 70, "ZeroDivisionError: oh")
    assert (status(plan)["state"], status(plan)["reason"]) == ("FAILED", "ZeroDivisionError: oh")
    assert "Traceback" in plan.rundir.log(0).read_text()


def test_a_run_interrupted_without_a_save_may_go_on_later(make_plan, run):
    plan = make_plan(end="interrupt", at=3)
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    assert events(plan)[-1] == ("end", 1, 76, "interrupted")
    assert status(plan)["state"] == "PREEMPTED"
    assert not plan.rundir.summary.exists()


def test_a_task_that_is_not_there_leaves_the_run_failed(make_plan, run):
    plan = Plan.from_json(make_plan().to_json() | {"target": "tests.launcher.runtime.toy_job:trian"})
    with pytest.raises(UserError, match="has no trian"):
        run(plan)
    assert status(plan)["state"] == "FAILED"
    assert events(plan)[-1][2] == 1


def test_after_an_error_the_run_directory_is_free_again(make_plan, run):
    with pytest.raises(UserError):
        run(make_plan(end="refuse", at=1))
    assert run(make_plan()).state == "COMPLETED"


def test_states_go_only_when_the_run_is_completed(make_plan, run, monkeypatch):
    plan, real = make_plan(at_end="weights", every_steps=2), Saver.drop_states
    seen = []

    def drop(saver):
        seen.append((status(plan)["state"], plan.rundir.summary.exists()))
        real(saver)

    monkeypatch.setattr(Saver, "drop_states", drop)
    run(plan)
    assert seen == [("COMPLETED", True)] and plan.rundir.list_checkpoints("step") == []


# Whose directory it is


def test_the_directory_of_another_science_is_refused_and_left_untouched(make_plan, run):
    plan = make_plan()
    run(plan)
    before = contents(plan.rundir.path)
    other = Plan.from_json(make_plan(lr=0.5).to_json() | {"run_id": plan.run_id})
    with pytest.raises(UserError, match=r"belongs to another config; move it away or change launch\.name"):
        run(other)
    assert contents(plan.rundir.path) == before


def test_a_directory_that_another_process_trains_in_is_refused_and_left_untouched(make_plan, run):
    plan = make_plan()
    plan.rundir.path.mkdir(parents=True)
    with held_elsewhere(plan.rundir), pytest.raises(UserError, match="another process is training it"):
        run(plan)
    assert contents(plan.rundir.path) == {}


def test_a_contradiction_in_the_environment_is_told_before_anything_is_written(make_plan):
    plan = make_plan()
    with pytest.raises(UserError, match="WORLD_SIZE is not set"):
        run_job(plan, {"RANK": "0"}, StopFlag())
    assert not plan.rundir.path.exists()
