"""MLflow in SQLite: what stands there of a run through all its attempts, read back by MLflow's own client."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from launcher.runtime.errors import UserError
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import start_trackers
from launcher.runtime.trackers.mlflow_run import MlflowRun
from launcher.runtime.trackers.mlflow_store import Place, experiment_id, open_client, place_of
from launcher.runtime.trackers.values import as_key
from tests.launcher.runtime.trackers.stores import SUMMARY, about, artifacts, losses, run_of, write_ledger

MLFLOW = TrackerSettings(mlflow=True)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store that was used for the first time, which takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(Place(f"sqlite:///{file}", "none"))
    return file


@pytest.fixture
def path(tmp_path, empty_store):
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs")
    return tmp_path / "runs" / "demo" / "0123456789ab"


def opened(told):
    return MlflowRun(told, place_of(MLFLOW, told))


def logged(run, steps):
    for step in steps:
        run.log({"train/loss": float(step)}, step)
    run.flush()


def test_by_default_it_is_sqlite_beside_the_sweeps_and_the_experiment_is_the_tasks(path, tmp_path):
    told = about(path)
    place = place_of(MLFLOW, told)
    assert place.uri == f"sqlite:///{tmp_path}/runs/mlflow.db" and place.experiment == "vlm"
    run = opened(told)
    logged(run, [1])
    run.finish(SUMMARY)
    assert (tmp_path / "runs" / "mlflow.db").exists()
    found = run_of(place, told.rundir)
    assert found.info.run_name == "0123456789ab" and found.info.artifact_uri.startswith((tmp_path / "runs").as_uri())
    other = place_of(TrackerSettings(mlflow=True, mlflow_uri="http://h:1", mlflow_experiment="mine"), told)
    assert (other.uri, other.experiment, other.artifacts) == ("http://h:1", "mine", None)


def test_a_run_has_its_parameters_numbers_files_pictures_tags_and_end(path):
    told = about(path, slurm_job_id="12_3")
    told.rundir.loss_curve.write_bytes(b"png")
    place, run = place_of(MLFLOW, told), opened(told)
    run.log({"train/loss": 2.5, "note": "hi", "report": "a\nb", "samples/captions": np.zeros((4, 6, 3), np.uint8)}, 3)
    run.finish(SUMMARY)
    found = run_of(place, told.rundir)
    assert found.info.status == "FINISHED"
    params = found.data.params
    assert (params["optim.lr"], params["flip"], params["sizes"], params["note"]) == ("0.5", "True", "[1, 2]", "None")
    assert params["long"] == "x" * 6000
    assert found.data.metrics["final/val_loss"] == 1.5 and "final/best_val_loss" not in found.data.metrics
    tags = found.data.tags
    assert (tags["sweep"], tags["slurm_job_id"], tags["git_sha"], tags["state"]) == (
        "demo", "12_3", "a" * 40, "COMPLETED")  # fmt: skip
    assert "mlflow.parentRunId" not in tags
    run_id = found.info.run_id
    assert losses(place, run_id) == [(3, 2.5)]
    assert {"config.yaml", "loss_curve.png", "summary.json"} < artifacts(place, run_id)
    assert tags["note"] == "hi" and artifacts(place, run_id, "texts") == {"texts/report.step-000003.txt"}
    (picture,) = [name for name in artifacts(place, run_id, "images") if name.endswith(".png")]
    assert "step" in picture and picture.endswith(".png")


def test_a_run_that_goes_on_is_the_same_run_and_no_step_stands_twice(path):
    first = opened(about(path))
    logged(first, [1, 2, 3, 4])
    first.log({"samples/captions": np.zeros((4, 6, 3), np.uint8)}, 4)
    # Killed: nothing was finished. It goes on from step 2.
    told = about(path, 2)
    write_ledger(told.rundir, [1, 2])
    second = opened(told)
    second.log({"samples/captions": np.zeros((4, 6, 3), np.uint8)}, 4)
    logged(second, [3, 4, 5, 6])
    second.finish(SUMMARY)
    place = place_of(MLFLOW, told)
    run = run_of(place, told.rundir)
    assert losses(place, run.info.run_id) == [(step, float(step)) for step in range(1, 7)]
    assert len([name for name in artifacts(place, run.info.run_id, "images") if name.endswith(".png")]) == 1
    assert run.info.status == "FINISHED"


def test_a_run_that_goes_on_makes_up_for_what_the_attempt_before_could_not_record(path):
    logged(opened(about(path)), [1, 3])
    told = about(path, 4)
    write_ledger(told.rundir, [1, 2, 3, 4, 5], 0)  # 5 is done again, and another number then
    run = opened(told)
    place = place_of(MLFLOW, told)
    assert [step for step, _ in losses(place, run_of(place, told.rundir).info.run_id)] == [1, 2, 3, 4]
    run.log({"train/loss": 50.0}, 5)
    run.flush()
    assert losses(place, run_of(place, told.rundir).info.run_id)[-1] == (5, 50.0)


def test_catching_up_records_what_the_ledger_has_and_says_whether_there_is_one(path):
    told = about(path)
    run = opened(told)
    logged(run, [1])
    assert not run.catch_up()
    write_ledger(told.rundir, [1, 2, 3])
    assert run.catch_up()
    place = place_of(MLFLOW, told)
    assert [step for step, _ in losses(place, run_of(place, told.rundir).info.run_id)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("state", "summary", "status"),
    [
        ("COMPLETED", {"status": "COMPLETED", "step": 1}, "FINISHED"),
        ("FAILED", {"status": "FAILED", "step": 1, "reason": "the loss is nan"}, "FAILED"),
        ("CANCELLED", {}, "KILLED"),
        ("PREEMPTED", {}, "RUNNING"),
    ],
)
def test_how_it_ended_is_told_in_mlflows_words(path, state, summary, status):
    told = about(path)
    run = opened(told)
    logged(run, [1])
    told.rundir.write_status(state=state)
    run.finish(summary)
    found = run_of(place_of(MLFLOW, told), told.rundir)
    assert (found.info.status, found.data.tags["state"]) == (status, state)
    assert found.data.tags.get("reason", "") == summary.get("reason", "")
    opened(about(path, 1))
    assert run_of(place_of(MLFLOW, told), told.rundir).info.status == "RUNNING"


def test_numbers_that_are_not_finite_break_nothing(path):
    told = about(path)
    run = opened(told)
    run.log({"train/loss": float("nan"), "a": float("inf"), "b": -float("inf"), "odd, name//x": 1.0}, 1)
    run.log({"train/loss": 1.0}, 2)
    run.finish(SUMMARY)
    place = place_of(MLFLOW, told)
    run_id = run_of(place, told.rundir).info.run_id
    assert math.isnan(losses(place, run_id)[0][1]) and losses(place, run_id)[1] == (2, 1.0)
    assert losses(place, run_id, "a")[0][1] > 1e300 and losses(place, run_id, "b")[0][1] < -1e300
    assert losses(place, run_id, "odd_ name__x") == [(1, 1.0)]


@pytest.mark.parametrize(
    ("name", "key"),
    [("train/loss", "train/loss"), ("val/exact/match, all", "val/exact/match_ all"), ("../x", "_x"), ("/a", "_a"),
     ("a//b", "a__b"), ("é:ü", "___")],
)  # fmt: skip
def test_names_are_such_as_mlflow_takes(name, key):
    assert as_key(name) == key
    assert len(as_key("n" * 300)) == 250


def test_members_of_a_sweep_are_children_of_one_run_whoever_was_first(path):
    """A plain ``-m`` has no list of members: that it is a sweep shows with the second of them."""
    told = [about(path.parent / name) for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc")]
    for number, one in enumerate(told):
        if number < 2:
            one.rundir.plan.write_text("{}")
        run = opened(one)
        logged(run, [1])
        run.finish(SUMMARY)
        one.rundir.plan.write_text("{}")
        if number == 0:
            one.rundir.plan.unlink()
            assert "mlflow.parentRunId" not in run_of(place_of(MLFLOW, one), one.rundir).data.tags
            one.rundir.plan.write_text("{}")
    place = place_of(MLFLOW, told[0])
    parents = {run_of(place, one.rundir).data.tags["mlflow.parentRunId"] for one in told}
    (parent,) = parents
    found = open_client(place).get_run(parent)
    assert (found.info.run_name, found.data.tags["kind"], found.info.status) == ("demo", "sweep", "FINISHED")


def test_an_experiment_that_was_deleted_is_told(path):
    told = about(path)
    place = place_of(MLFLOW, told)
    client = open_client(place)
    client.delete_experiment(experiment_id(client, place))
    with pytest.raises(UserError, match="experiment 'vlm' is deleted: restore it, or choose"):
        opened(told)


def test_a_run_that_somebody_deleted_is_recorded_anew(path):
    told = about(path)
    logged(opened(told), [1])
    place = place_of(MLFLOW, told)
    open_client(place).delete_run(run_of(place, told.rundir).info.run_id)
    logged(opened(about(path)), [1, 2])
    assert losses(place, run_of(place, told.rundir).info.run_id) == [(1, 1.0), (2, 2.0)]


def test_who_is_killed_before_it_knows_its_run_finds_it_again(path):
    told = about(path)
    logged(opened(told), [1])
    known = json.loads(told.rundir.mlflow.read_text())
    del known["run"]
    told.rundir.mlflow.write_text(json.dumps(known))
    logged(opened(about(path)), [2])
    place = place_of(MLFLOW, told)
    assert losses(place, run_of(place, told.rundir).info.run_id) == [(1, 1.0), (2, 2.0)]


def test_the_curves_that_csv_draws_at_the_end_are_among_the_files(path):
    told = about(path)
    trackers = start_trackers(TrackerSettings(csv=True, mlflow=True), told)
    for tracker in trackers:
        tracker.log({"train/loss": 1.0, "time/total": 0.1}, 1)
    for tracker in trackers:
        tracker.finish(SUMMARY)
    assert trackers[1].wait()
    place = place_of(MLFLOW, told)
    files = artifacts(place, run_of(place, told.rundir).info.run_id)
    assert {"loss_curve.png", "timing_curve.png", "summary.json", "config.yaml"} <= files


RACER = """if True:
    import sys
    from pathlib import Path
    from launcher.runtime.settings import TrackerSettings
    from launcher.runtime.trackers.mlflow_run import MlflowRun
    from launcher.runtime.trackers.mlflow_store import place_of
    from tests.launcher.runtime.trackers.stores import SUMMARY, about
    told = about(Path(sys.argv[1]))
    sys.stdin.readline()
    run = MlflowRun(told, place_of(TrackerSettings(mlflow=True), told))
    for step in range(1, 21):
        run.log({"train/loss": float(step)}, step)
        run.flush()
    run.finish(SUMMARY)"""


@pytest.mark.slow
def test_four_processes_that_use_a_new_store_at_once_are_four_children_of_one_run(tmp_path):
    sweep = tmp_path / "runs" / "demo"
    folders = [sweep / (letter * 12) for letter in "abcd"]
    for folder in folders:
        about(folder).rundir.plan.write_text("{}")
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(folder)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for folder in folders
    ]
    said = [racer.communicate(b"go\n", timeout=300)[1].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, "\n".join(said)
    told = [about(folder) for folder in folders]
    place = place_of(MLFLOW, told[0])
    runs = [run_of(place, one.rundir) for one in told]
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    assert all(len(losses(place, run.info.run_id)) == 20 for run in runs)
    client = open_client(place)
    assert len(client.search_runs([runs[0].info.experiment_id], "tags.kind = 'sweep'")) == 1
