"""Which number runs are ranked by."""

from __future__ import annotations

import pytest

from launcher.runtime.files import write_json
from launcher.runtime.sweepdir import SweepDir
from tests.sweeps.compare.made_runs import made_grid, made_run


def test_the_newest_request_of_a_sweep_names_it(folder, answer):
    made_grid(folder)
    asked = [{"metric": "x", "direction": "minimize"}, {"metric": "samples_per_s", "direction": "maximize"}, {}]
    write_json(SweepDir(folder).requests, {"requests": asked})
    told = answer(folder)
    assert (told["metric"], told["direction"]) == ("samples_per_s", "max")
    assert answer(folder, "--direction", "min")["direction"] == "min"
    assert answer(folder, "--metric", "train_loss")["direction"] == "min"


def test_without_validation_it_is_the_training_loss(folder, answer):
    made_run(folder, None)
    assert answer(folder)["metric"] == "train_loss"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["val/loss"], 3.0),
        (["val/loss:best"], 2.0),
        (["val/loss:best", "--direction", "max"], 5.0),
        (["best_val_loss"], 1.0),
    ],
)
def test_a_curve_is_its_last_value_or_its_best(folder, answer, words, value):
    made_run(folder, 1.0, curve={1: 5.0, 2: float("nan"), 3: 2.0, 4: 3.0})
    assert answer(folder, "--metric", *words)["runs"][0]["value"] == value


@pytest.mark.parametrize(("metric", "value"), [("train_loss", 4.0), ("val/loss", 4.0), ("best_val_loss", 3.0)])
def test_where_a_run_stands_is_read_from_its_curves(folder, answer, metric, value):
    made_run(folder, 1.0)
    made_run(folder, state="RUNNING", optim__lr=1, curve={1: 3.0, 2: 4.0})
    assert answer(folder, "--metric", metric)["runs"][-1]["value"] == value


def test_and_from_its_status_where_it_has_no_curve(folder, answer):
    made_run(folder, 1.0)
    made_run(folder, state="RUNNING", optim__lr=1).metrics.unlink()
    assert answer(folder, "--metric", "train_loss")["runs"][-1]["value"] == 2.5
    assert answer(folder)["runs"][-1]["value"] is None


def test_before_any_run_is_done_its_curves_tell_where_the_metric_stands(folder, answer):
    made_run(folder, state="RUNNING", curve={1: 3.0, 2: 4.0})
    write_json(SweepDir(folder).requests, {"requests": [{"metric": "best_val_loss", "direction": "minimize"}]})
    told = answer(folder)
    assert (told["metric"], told["runs"][0]["value"]) == ("best_val_loss", 3.0)


@pytest.mark.parametrize(("typed", "way"), [("maximize", "max"), ("minimize", "min"), ("max", "max")])
def test_a_direction_may_be_typed_as_in_a_sweeps_file(folder, answer, typed, way):
    made_run(folder, 1.0)
    assert answer(folder, "--direction", typed)["direction"] == way
