"""A job from plan to finished run directory: a toy task that ends in every way a task can end."""

from __future__ import annotations

import csv
import json
import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.errors import ExitCode, TrainingFailed, UserError, guarded
from launcher.runtime.identity import run_id
from launcher.runtime.job import run_job
from launcher.runtime.plan import Plan
from launcher.runtime.sections import Section, execution, halves, hashed, parse
from launcher.runtime.session import Session
from launcher.runtime.signals import StopFlag
from tests.launcher.runtime.test_rundir import held_elsewhere

with warnings.catch_warnings():  # tensorboard's own protobuf
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 6

# The toy task


@dataclass(frozen=True, kw_only=True)
class Toy(Section):
    """How the toy is trained, and how its training ends."""

    steps: int
    lr: float
    end: Literal["well", "stop", "refuse", "diverge", "crash", "interrupt"] = execution("well")
    at: int = execution(0)
    hub_token: str = execution("hf-secret")


ENDS = {
    "refuse": UserError("data.path=x: no such file"),
    "diverge": TrainingFailed("step 3: the loss is nan; lower optim.lr"),
    "crash": ZeroDivisionError("oh"),
    "interrupt": KeyboardInterrupt(),
}


def train(session: Session) -> dict[str, str] | None:
    """A loop as the session's docstring wants it; it draws random numbers at every step."""
    config: Toy = session.config
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    saved = session.restore()
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    session.expect(config.steps)
    for step in range(saved["step"] + 1 if saved else 1, config.steps + 1):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values, metric = {"train/loss": float(loss.detach()), "time/total": 0.1}, None
        if step % 2 == 0:
            metric = values["val/loss"] = 1.0 / step
        session.log(values, step)
        if step == config.at and config.end in ENDS:
            raise ENDS[config.end]
        if step == config.at and config.end == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        stop = session.should_stop()
        session.save({"step": step, "model": model, "optimizer": optimizer, "words": ["a"]}, metric)
        if stop:
            return None
    return {"note": "well done"}


# What the tests hold


@pytest.fixture
def stop():
    """A stop flag that hears this process's signals while the test lasts."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield StopFlag
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def make_plan(tmp_path):
    """``make_plan(end="stop", at=3, keep_last=3, …)``: a plan of the toy; equal science stands in one directory."""

    def made(root="runs", trackers=("csv", "tensorboard"), **changes) -> Plan:
        checkpoint = {"every_steps": None, "keep_last": 2, "keep_every": None, "at_end": "state", "best": True}
        checkpoint |= {key: changes.pop(key) for key in tuple(changes) if key in checkpoint}
        config = parse(Toy, {"steps": STEPS, "lr": 0.01} | changes)
        science, other = halves(config)
        return Plan(
            run_id=run_id(hashed(config)),
            name="toys",
            root=str(tmp_path / root),
            target=f"{__name__}:train",
            schema=f"{__name__}:Toy",
            science=science,
            execution={
                "task": other,
                "checkpoint": checkpoint,
                "tracker": dict.fromkeys(trackers, True),
                "hardware": {"device": "cpu", "micro_batch": None},
            },
        )

    return made


@pytest.fixture
def run(stop):
    """``run(plan)``: one attempt in this process, with a stop flag of its own."""

    def attempt(plan: Plan):
        flag = stop()
        flag.install()
        return run_job(plan, {}, flag)

    return attempt


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def events(plan: Plan) -> list[tuple]:
    return [(e["event"], e["attempt"], e.get("code"), e.get("reason")) for e in plan.rundir.attempt_events()]


def losses(plan: Plan) -> list[tuple[int, float]]:
    """Step and training loss of every row of ``metrics.csv``."""
    with plan.rundir.metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["split"], row["name"]) == ("train", "loss")]
    return [(int(row["step"]), float(row["value"])) for row in rows]


def board_losses(plan: Plan) -> list[tuple[int, float]]:
    board = EventAccumulator(str(plan.rundir.tensorboard), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss")]


def status(plan: Plan) -> dict:
    return json.loads(plan.rundir.status.read_text())


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
    assert events(plan) == [("start", 1, None, None), ("end", 1, 0, "COMPLETED")]
    assert [step for step, _ in losses(plan)] == list(range(1, STEPS + 1))
    assert [step for step, _ in board_losses(plan)] == list(range(1, STEPS + 1))


def test_the_summary_holds_the_numbers_that_runs_are_compared_by(make_plan, run):
    plan = make_plan()
    outcome = run(plan)
    summary = json.loads(plan.rundir.summary.read_text())
    assert outcome.summary == summary
    state = load(plan.rundir.list_checkpoints("step")[0])
    assert summary["weights_sha256"] == weights_sha256(state["model"])
    assert summary.pop("wall_s") >= 0
    del summary["weights_sha256"]
    assert summary == {
        "status": "COMPLETED",
        "step": STEPS,
        "train_loss": losses(plan)[-1][1],
        "val_loss": 1.0 / STEPS,
        "best_val_loss": 1.0 / STEPS,
        "samples_per_s": None,
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
    plan = Plan.from_json(make_plan().to_json() | {"target": f"{__name__}:trian"})
    with pytest.raises(UserError, match="has no trian"):
        run(plan)
    assert status(plan)["state"] == "FAILED"
    assert events(plan)[-1][2] == 1


def test_after_an_error_the_run_directory_is_free_again(make_plan, run):
    with pytest.raises(UserError):
        run(make_plan(end="refuse", at=1))
    assert run(make_plan()).state == "COMPLETED"


# It goes on


@pytest.fixture
def uninterrupted(make_plan, run):
    """A plan that ran from start to end at one go, beside the runs under test."""
    plan = make_plan(root="whole")
    run(plan)
    return plan


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
