"""The CSV tracker: every number in one table, losses and timings side by side, curves at the end."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import About, start_trackers
from launcher.runtime.trackers.csv_files import CsvFiles

TIMES = {f"time/{phase}": 0.25 for phase in ("data", "forward", "backward", "optimizer", "total")}


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_number_is_a_row_and_nothing_else_is(rundir):
    tracker = CsvFiles(rundir, 0)
    tracker.log({"train/loss": 0.1 + 0.2, "epoch": 2, "note": "hi", "picture": np.zeros((1, 1, 3), np.uint8)}, 3)
    assert rows(rundir.metrics) == [
        {"step": "3", "split": "train", "name": "loss", "value": "0.30000000000000004"},
        {"step": "3", "split": "", "name": "epoch", "value": "2.0"},
    ]
    tracker.finish({})


def test_only_the_first_slash_parts_the_split_from_the_name(rundir):
    tracker = CsvFiles(rundir, 0)
    tracker.log({"val/exact/match, all": 1.0}, 1)
    tracker.finish({})
    assert [(row["split"], row["name"]) for row in rows(rundir.metrics)] == [("val", "exact/match, all")]


def test_losses_stand_side_by_side_with_gaps_where_there_is_none(rundir):
    tracker = CsvFiles(rundir, 0)
    tracker.log({"train/loss": 2.0, "train/epoch": 0.5}, 1)
    tracker.log({"train/lr": 0.1}, 2)
    tracker.log({"train/loss": 1.5, "val/loss": 1.75}, 3)
    tracker.finish({})
    assert rundir.losses.read_text() == "step,epoch,train_loss,val_loss\n1,0.5,2.0,\n3,,1.5,1.75\n"


def test_timings_stand_side_by_side(rundir):
    tracker = CsvFiles(rundir, 0)
    tracker.log({"train/loss": 2.0}, 1)
    tracker.log(TIMES, 2)
    tracker.finish({})
    head, row = rundir.timings.read_text().splitlines()
    assert head == "step,data_s,forward_s,backward_s,optimizer_s,total_s"
    assert row == "2,0.25,0.25,0.25,0.25,0.25"


def test_going_on_after_a_step_drops_later_rows_of_all_three_tables(rundir):
    first = CsvFiles(rundir, 0)
    for step in (1, 2, 3):
        first.log({"train/loss": 1.0 / step} | TIMES, step)
    first.finish({})
    second = CsvFiles(rundir, 1)
    second.log({"train/loss": 9.0} | TIMES, 2)
    second.finish({})
    for path in (rundir.metrics, rundir.losses, rundir.timings):
        assert list(dict.fromkeys(row["step"] for row in rows(path))) == ["1", "2"]
    assert [row["train_loss"] for row in rows(rundir.losses)] == ["1.0", "9.0"]


def test_the_end_draws_the_curves(rundir):
    tracker = CsvFiles(rundir, 0)
    tracker.log({"train/loss": 2.0} | TIMES, 1)
    assert not rundir.loss_curve.exists()
    tracker.finish({"status": "COMPLETED"})
    assert rundir.loss_curve.read_bytes().startswith(b"\x89PNG")
    assert rundir.timing_curve.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_stopped_has_no_time_for_pictures(rundir):
    tracker = CsvFiles(rundir, 0)
    tracker.log({"train/loss": 2.0} | TIMES, 1)
    tracker.finish({})
    assert rows(rundir.metrics) and not rundir.loss_curve.exists()


@pytest.mark.parametrize(
    ("names", "made"), [([], set()), (["csv"], {"metrics.csv", "losses_log.csv", "timing_logs.csv"})]
)
def test_only_the_trackers_that_are_named_are_started(rundir, names, made):
    trackers = start_trackers(TrackerSettings(**dict.fromkeys(names, True)), About(rundir, {}, {}))
    assert len(trackers) == len(names)
    assert {path.name for path in rundir.path.iterdir()} == made
    for tracker in trackers:
        tracker.finish({})


def test_what_cannot_be_drawn_ends_no_run(rundir, caplog):
    tracker = CsvFiles(rundir, 0)
    for step, loss in enumerate([1e308, -1e308], start=1):
        tracker.log({"train/loss": loss}, step)
    tracker.finish({"status": "COMPLETED"})
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("no curves (") and said.endswith(f"draw them with: python -m launcher curves {rundir.path}")
