"""What changes between the attempts of a run: its ranks, its code, its config, and in which moment it was stopped."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from launcher.runtime.checkpoint.reading import load
from slurm.cluster import Cluster
from slurm.faults import preempt
from tests.conftest import SMALL
from tests.integration.lab import BASE, FOUR, ONE, TWO, Lab, Run, assert_logs_go_forward, assert_same, samples

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One user for all tests here; no job of theirs is left."""
    lab = Lab(cluster, tmp_path_factory.mktemp("lab") / "home")
    yield lab
    lab.type("launcher", "cancel", "runs", "--grace", "0")


def sizes(run: Run) -> list[int]:
    """How many ranks wrote samples, each number once, in the order of the steps."""
    rows = list(csv.DictReader((run.path / "samples.csv").read_text().splitlines()))
    most: dict[int, int] = {}
    for row in rows:
        step = int(row["step"])
        most[step] = max(most.get(step, 0), int(row["rank"]) + 1)
    return [size for step, size in sorted(most.items()) if step == 1 or size != most[step - 1]]


def test_on_four_ranks_then_two_then_four_each_sample_of_each_step_stays_the_same(lab: Lab):
    wish = ("trainer.max_steps=150", "model.dropout=0")
    run = lab.run("worlds", *FOUR, *wish)
    for hardware, step in ((TWO, 40), (FOUR, 80)):
        run.wait_for_step(step, len(run.events("start")) or 1)
        run.cancel()
        run = lab.run("worlds", *hardware, *wish)
        begun = len(run.events("start"))
        run.wait(lambda begun=begun, run=run: len(run.events("start")) > begun)
    whole = lab.uninterrupted(*FOUR, *wish)
    run.wait_for("COMPLETED", "FAILED")
    whole.wait_for("COMPLETED", "FAILED")
    assert (run.state, whole.state) == ("COMPLETED", "COMPLETED"), run.story()
    assert sizes(run) == [4, 2, 4]
    assert samples(run) == samples(whole) and max(samples(run).values()) == 1
    assert_logs_go_forward(run)
    ends, starts = run.events("end"), run.events("start")
    assert [event["step"] for event in starts[1:]] == [event["step"] for event in ends[: len(starts) - 1]], (
        "no step is done again"
    )
    mine, theirs = (load(one.checkpoints()[-1])["model"] for one in (run, whole))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_built_in_task_takes_the_same_samples_on_two_ranks_as_on_one(lab: Lab):
    built_in = (
        "site=disposable", "site.slurm_conf=null", "hardware.device=cpu", *SMALL, "trainer.max_steps=400",
        "trainer.log_samples=true", "trainer.val_every=200", "precision=fp32", "checkpoint.at_end=state",
    )  # fmt: skip

    def launched(name: str, *hardware: str) -> Run:
        words = ("hydra/launcher=submitit_slurm", *built_in, *hardware, f"launch.name={name}")
        done = lab.type("launcher.run", *words)
        assert done.returncode == 0, done.stderr
        return lab.found(name)

    whole, run = launched("model-whole"), launched("model", *TWO)
    run.wait_for_step(30)
    run.cancel()
    run = launched("model")
    for one in (run, whole):
        one.wait_for("COMPLETED", "FAILED")
        assert one.state == "COMPLETED", one.story()
    assert sizes(run) == [2, 1] and samples(run) == samples(whole) and max(samples(run).values()) == 1
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)


def losses(run: Run) -> list[float]:
    """Of each logged step."""
    rows = csv.DictReader((run.path / "metrics.csv").read_text().splitlines())
    return [float(row["value"]) for row in rows if (row["split"], row["name"]) == ("train", "loss")]


ANCHOR = "    orders.slow_down()\n"
"""Early in the task: here it is edited."""


@pytest.fixture
def edit(lab: Lab) -> Iterator[Callable[[str], None]]:
    """``edit("line")``: that line stands in the code of today, instead of the one before."""
    path = lab.home / "exact_task.py"
    before = path.read_text()
    assert before.count(ANCHOR) == 1

    def write(line: str) -> None:
        path.write_text(before.replace(ANCHOR, f"{ANCHOR}    {line}\n"))

    yield write
    path.write_text(before)


def plan(run: Run) -> dict[str, Any]:
    return run.read("plan.json")


def test_a_requeue_runs_the_frozen_code_and_a_command_by_hand_takes_todays(lab: Lab, edit: Callable[[str], None]):
    wish = (*ONE, "trainer.max_steps=600")
    whole = lab.uninterrupted(*wish)
    whole.wait_for("COMPLETED", "FAILED")  # or the preemption might hit it, too
    run = lab.run("edited", *wish)
    frozen, today = plan(run), run.path / "today"
    run.wait_for_step(10)
    edit('raise RuntimeError("the code of today")')
    preempt(lab.cluster, run.job)
    run.wait_for_step(run.step + 5, 2)
    assert plan(run)["code"] == frozen["code"] and plan(run)["execution"] == frozen["execution"]
    run.cancel()
    edit('(session.rundir.path / "today").touch()')
    again = lab.run("edited", *wish, "checkpoint.every_steps=25")
    assert again.path == run.path, "the same run goes on"
    again.wait(lambda: len(again.events("start")) == 3)
    assert_same(again, whole)
    assert today.exists() and plan(again)["code"] != frozen["code"] and plan(again)["run_id"] == frozen["run_id"]
    assert plan(again)["execution"]["checkpoint"]["every_steps"] == 25
    assert (again.path.parent / "code" / plan(again)["code"]).is_dir()


def test_another_science_is_another_run_and_never_goes_on_in_a_folder_that_is_not_its_own(lab: Lab):
    wish = (*ONE, "trainer.max_steps=100")
    run = lab.run("science", *wish)
    run.wait(lambda: run.events("end"))  # the last line that it writes
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    words = ("launcher.run", "hydra/launcher=submitit_slurm", *BASE, *wish, "launch.name=science")
    done = lab.type(*words, "optim.lr=2e-3")
    assert done.returncode == 0, done.stderr
    (other,) = [path.parent for path in run.path.parent.glob("*/plan.json") if path.parent != run.path]
    other = Run(lab, other, "")
    other.wait_for("COMPLETED", "FAILED")
    assert other.read("plan.json")["science"]["optim"]["lr"] == 2e-3
    assert [event["step"] for event in other.events("start")] == [0]
    assert {path: path.read_bytes() for path in kept} == kept
    path = other.path / "plan.json"
    theirs = json.loads(path.read_text())
    theirs["science"]["optim"]["lr"] = 0.5
    path.write_text(json.dumps(theirs))
    refused = lab.type(*words, "optim.lr=2e-3")
    line = f"error: run directory {other.path} belongs to another config; move it away or change launch.name"
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1] == line and "Traceback" not in refused.stderr
    assert json.loads(path.read_text()) == theirs


def test_after_several_kills_each_step_stands_once_in_tensorboard_and_in_the_tables(lab: Lab):
    wish = (*TWO, "trainer.max_steps=250")
    run = lab.run("killed", *wish, orders={"hold": 6})  # killed before anything was saved
    for rank, following in ((0, 35), (1, None)):
        run.wait_held(2)
        run.kill(rank, signal.SIGKILL)
        run.move_on(following)
    run.wait_for_step(40, 3)
    preempt(lab.cluster, run.job)
    assert_same(run, lab.uninterrupted(*wish))
    assert [event["step"] for event in run.events("start")][:3] == [0, 0, 20]
    assert_each_step_once(run, 250)


def assert_each_step_once(run: Run, last: int) -> None:
    """In every curve of TensorBoard, and in every table that grows with the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tb"), size_guidance={"scalars": 0}).Reload()
    for tag in ("train/loss", "train/scale"):
        assert [event.step for event in events.Scalars(tag)] == list(range(1, last + 1)), tag
    tables: dict[str, Sequence[str]] = {"metrics.csv": ("split", "name"), "losses_log.csv": ()}
    for name, keys in tables.items():
        rows = list(csv.DictReader((run.path / name).read_text().splitlines()))
        found = [(int(row["step"]), *(row[key] for key in keys)) for row in rows]
        assert len(found) == len(set(found)) and [row[0] for row in found] == sorted(row[0] for row in found), name
        assert {row[0] for row in found} == set(range(1, last + 1)), name


def test_stopped_between_micro_batches_around_a_step_that_overflows_nothing_differs(lab: Lab):
    wish = (*TWO, "trainer.max_steps=60")
    runs = {at: lab.run(f"stopped-{at}", *wish, orders={"hold_between": at}) for at in (13, 14, 15)}
    whole = lab.uninterrupted(*wish)
    for following in (21, None):
        for at, run in runs.items():
            run.wait_held(2)
            for rank in (0, 1):
                run.kill(rank, signal.SIGUSR2)
            run.move_on(following and at + following, "hold_between")
    for at, run in runs.items():
        assert_same(run, whole)
        assert [event["reason"] for event in run.events("requeue")] == ["asked to stop"] * 2
        run.wait(lambda run=run: len(run.events("end")) == 3)  # the last is written once it is COMPLETED
        # The ranks hear of it in the step after the one in which they were asked; and no step is done again.
        assert [event["step"] for event in run.events("end")] == [at + 1, at + 22, 60]
        assert [event["step"] for event in run.events("start")] == [0, at + 1, at + 22]
