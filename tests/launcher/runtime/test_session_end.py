"""The session's best, its last and its numbers: what it keeps at the end, what it tells the trackers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.world import World
from tests.launcher.runtime.desk import Desk, toy

# The best weights


@settings(max_examples=15)
@given(st.lists(st.floats(), min_size=1, max_size=6))
def test_the_best_weights_are_those_of_the_smallest_metric(tmp_path_factory, metrics):
    at = Desk(tmp_path_factory.mktemp("run"))
    model = torch.nn.Linear(1, 1)
    for step, metric in enumerate(metrics, 1):
        with torch.no_grad():
            model.weight.fill_(step)
        at.save(step, model, metric)
    finite = [metric for metric in metrics if metric < math.inf]
    if not finite:
        assert at.session.best_metric is None
        assert at.steps("best") == []
        return
    best_step = metrics.index(min(finite)) + 1
    assert at.session.best_metric == min(finite)
    assert at.steps("best") == [best_step]
    assert float(load(at.rundir.list_checkpoints("best")[0])["model"]["weight"]) == best_step


def test_the_best_of_an_earlier_attempt_is_not_replaced_by_a_worse_one(desk):
    model, _ = toy()
    desk(every_steps=1).save(1, model, metric=0.5)
    at = desk(attempt=2)
    at.save(2, model, metric=0.6)
    assert at.steps("best") == [1]
    at.save(3, model, metric=0.4)
    assert at.steps("best") == [3]


def test_the_best_weights_come_without_what_only_training_needs(desk):
    at = desk()
    model, optimizer = toy()
    at.save(1, model, optimizer=optimizer, words=["a"], metric=0.5)
    best = load(at.rundir.list_checkpoints("best")[0])
    assert best.keys() == {"step", "model", "words"}
    assert weights_sha256(best["model"]) == weights_sha256(model.state_dict())


def test_no_best_weights_are_kept_where_none_are_wanted(desk):
    at = desk(best=False)
    at.save(1, toy()[0], metric=0.5)
    assert at.steps("best") == []
    assert at.session.best_metric == 0.5


# What is kept at the end


@pytest.mark.parametrize(
    ("at_end", "states", "final"), [("state", [2, 5], []), ("weights", [], [5]), ("nothing", [], [])]
)
def test_a_finished_run_keeps_what_it_was_told_to_and_its_best(desk, at_end, states, final):
    at = desk(every_steps=2, keep_last=2)
    model, optimizer = toy()
    for step in (1, 2, 3, 5):
        at.save(step, model, optimizer=optimizer, metric=1.0 / step)
    assert at.session.finish(at_end) == weights_sha256(model.state_dict())
    at.session.tidy(at_end)
    assert (at.steps(), at.steps("final"), at.steps("best")) == (states, final, [5])


def test_final_weights_are_the_last_and_light(desk):
    at = desk()
    model, optimizer = toy()
    at.save(1, model, optimizer=optimizer, words=["a"])
    digest = at.session.finish("weights")
    final = load(at.rundir.list_checkpoints("final")[0])
    assert final.keys() == {"step", "model", "words"}
    assert weights_sha256(final["model"]) == digest


@pytest.mark.parametrize(("at_end", "states", "final"), [("state", [5], []), ("weights", [], [5])])
def test_a_run_stopped_at_its_last_step_is_finished_by_an_attempt_without_steps(desk, raised, at_end, states, final):
    at = desk()
    model, optimizer = toy()
    at.session.log({"train/loss": 0.5}, 5)
    raised(at.stop)
    assert at.session.should_stop()
    at.save(5, model, optimizer=optimizer, words=["a"], metric=0.25)
    at = desk(attempt=2)
    assert at.session.finish(at_end) == weights_sha256(model.state_dict())
    at.session.tidy(at_end)
    assert (at.steps(), at.steps("final")) == (states, final)
    assert at.session.last == {"train/loss": 0.5}
    if final:
        assert load(at.rundir.list_checkpoints("final")[0]).keys() == {"step", "model", "words"}


def test_a_run_that_offered_no_state_has_no_weights(desk):
    assert desk().session.finish("state") is None


# Numbers


def test_trackers_are_opened_with_the_first_number_after_the_restored_step(desk):
    first = desk(every_steps=1)
    assert first.opened == []
    first.session.log({"train/loss": 2.0}, 1)
    assert first.opened[0].opened_at == 0
    first.save(1, toy()[0])
    second = desk(attempt=2)
    second.session.log({"train/loss": 1.0}, 2)
    assert second.opened[0].opened_at == 1
    assert second.opened[0].logged == [(2, {"train/loss": 1.0})]


def test_only_rank_0_writes_best_weights_numbers_and_status(desk):
    at = desk(world=World(rank=1, size=2))
    before = set(at.rundir.path.iterdir())
    at.session.log({"train/loss": 1.0}, 1)
    at.save(1, toy()[0], metric=0.5)
    assert at.session.finish("weights") is None
    at.session.tidy("state")
    assert set(at.rundir.path.iterdir()) == before and at.opened == []


def test_the_newest_value_of_each_number_is_kept(desk):
    session = desk().session
    session.log({"train/loss": 2.0, "note": "hello", "picture": np.zeros((2, 2, 3), np.uint8)}, 1)
    session.log({"val/loss": 1, "train/loss": 1.5}, 2)
    assert session.last == {"train/loss": 1.5, "val/loss": 1.0}
    assert session.step == 2


def test_trackers_are_finished_once_with_the_summary(desk):
    at = desk()
    at.session.log({"train/loss": 2.0}, 1)
    at.session.close_trackers({"step": 1})
    at.session.close_trackers({})
    assert [notebook.summary for notebook in at.opened] == [{"step": 1}]


def test_the_status_tells_state_step_and_losses(desk):
    at = desk()
    at.session.log({"train/loss": 2.0, "val/loss": 3.0, "train/samples_per_s": 10.0}, 7)
    assert at.rundir.state() == "RUNNING"
    at.session.expect(9)
    at.session.write_status("FAILED", "so")
    status = json.loads(at.rundir.status.read_text())
    assert status.pop("heartbeat") > 0
    assert status == {
        "state": "FAILED", "step": 7, "loss": 2.0, "val_loss": 3.0, "samples_per_s": 10.0, "saved_step": None,
        "total_steps": 9, "reason": "so",
    }  # fmt: skip
