"""The session: when it saves, what it restores, what it keeps at the end, what it tells the trackers."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from launcher.runtime.checkpoints import Checkpoints, load, weights_sha256
from launcher.runtime.console import Meter
from launcher.runtime.rundir import RunDir
from launcher.runtime.session import Session
from launcher.runtime.settings import CheckpointSettings, Settings, TrackerSettings
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World

CADENCE = {"every_steps": None, "keep_last": 2, "keep_every": None, "at_end": "state", "best": True}


class Notebook:
    """A tracker that remembers what it was told."""

    def __init__(self, step: int) -> None:
        self.opened_at = step
        self.logged: list[tuple[int, dict]] = []
        self.summary = None

    def log(self, values, step):
        self.logged.append((step, dict(values)))

    def finish(self, summary):
        assert self.summary is None, "finished twice"
        self.summary = dict(summary)


class Desk:
    """A session in a folder, and the trackers that it opened."""

    def __init__(self, folder, attempt=1, world=None, **checkpoint) -> None:
        self.opened: list[Notebook] = []
        self.stop = StopFlag()
        self.rundir = RunDir(folder)
        self.session = Session(
            {"lr": 0.1},
            world or World(),
            self.rundir,
            Settings(checkpoint=CheckpointSettings(**CADENCE | checkpoint), tracker=TrackerSettings()),
            attempt=attempt,
            stop=self.stop,
            meter=Meter(Console(file=io.StringIO()), visible=False),
            open_trackers=self._open,
        )

    def _open(self, step):
        self.opened.append(Notebook(step))
        return [self.opened[-1]]

    def steps(self, kind="step"):
        return sorted(int(path.name.split("-")[1].split(".")[0]) for path in self.rundir.list_checkpoints(kind))


def toy():
    """A model and an optimizer that has a state."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def desk(tmp_path):
    return lambda attempt=1, **changes: Desk(tmp_path, attempt, **changes)


@pytest.fixture
def raised():
    """A stop flag's handler for SIGTERM while the test lasts: ``raised(flag)`` raises it by a real signal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}

    def ask(flag: StopFlag) -> None:
        flag.install()
        os.kill(os.getpid(), signal.SIGTERM)

    yield ask
    for number, handler in before.items():
        signal.signal(number, handler)


# When it saves


def test_a_state_is_saved_on_the_cadence_and_at_no_other_step(desk):
    model, _ = toy()
    at = desk(every_steps=3, keep_last=9)
    for step in range(1, 8):
        at.session.save({"step": step, "model": model})
    assert at.steps() == [3, 6]
    assert at.session.saved_step == 6


def test_without_a_cadence_nothing_is_saved_on_the_way(desk):
    at = desk()
    for step in range(1, 8):
        at.session.save({"step": step, "model": toy()[0]})
    assert at.steps() == []
    assert at.session.saved_step is None


def test_a_stop_saves_the_step_at_hand(desk, raised):
    at = desk()
    model, _ = toy()
    assert at.session.should_stop() is False
    at.session.save({"step": 1, "model": model})
    raised(at.stop)
    assert at.session.should_stop() is True
    at.session.save({"step": 2, "model": model})
    assert at.steps() == [2]


def test_a_stop_once_heard_stays(desk, raised):
    at = desk()
    raised(at.stop)
    assert [at.session.should_stop(), at.session.should_stop(), at.session.stopping] == [True] * 3


def test_only_rank_0_writes(desk):
    at = desk(world=World(rank=1, size=2), every_steps=1)
    at.session.log({"train/loss": 1.0}, 1)
    at.session.save({"step": 1, "model": toy()[0]}, metric=0.5)
    assert at.session.finish("state") is None
    assert list(at.rundir.path.iterdir()) == []
    assert at.opened == []


# What it restores


def test_on_a_fresh_start_there_is_nothing_to_restore(desk):
    at = desk()
    assert at.session.restore() is None
    assert (at.session.step, at.session.saved_step, at.session.best_metric) == (0, None, None)


def test_model_optimizer_step_best_metric_and_plain_values_come_back(desk):
    model, optimizer = toy()
    state = {"step": 4, "model": model, "optimizer": optimizer, "words": ["a", "b"], "scale": torch.tensor(2.0)}
    desk(every_steps=2).session.save(state, metric=0.25)
    session = desk(attempt=2).session
    saved = session.restore()
    assert (session.step, session.saved_step, session.best_metric) == (4, 4, 0.25)
    assert saved.keys() == state.keys()
    assert (saved["step"], saved["words"], saved["scale"]) == (4, ["a", "b"], torch.tensor(2.0))
    assert weights_sha256(saved["model"]) == weights_sha256(model.state_dict())
    other, other_optimizer = toy()
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    for one, two in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def draws():
    """A number of each generator that a task may use; two of numpy's, whose Gauss keeps one back."""
    return [random.random(), random.gauss(0, 1), *np.random.rand(2), np.random.randn(), *torch.rand(3).tolist()]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), warm=st.integers(0, 3))
def test_all_random_generators_go_on_as_if_nothing_had_happened(tmp_path_factory, seed, warm):
    folder = tmp_path_factory.mktemp("run")
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    for _ in range(warm):
        draws()
    Desk(folder, every_steps=1).session.save({"step": 1, "model": toy()[0]})
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draws() != expected
    Desk(folder, attempt=2).session.restore()
    assert draws() == expected


def test_a_state_saved_beside_more_gpus_is_restored_on_a_machine_with_fewer(desk):
    at = desk(every_steps=1)
    at.session.save({"step": 1, "model": toy()[0]})
    content = load(at.rundir.list_checkpoints("step")[0])
    here = torch.cuda.device_count()
    content["session"]["rng"][0]["cuda"] = [torch.cuda.get_rng_state(i) for i in range(here)] + [torch.get_rng_state()]
    at = desk(attempt=2)
    Checkpoints(at.rundir, CheckpointSettings(**CADENCE), 2).save_state(1, content)
    assert at.session.restore()["step"] == 1


def test_a_damaged_state_is_warned_of_and_the_one_before_is_restored(desk, caplog):
    at = desk(every_steps=1)
    for step in (1, 2):
        at.session.save({"step": step, "model": toy()[0]})
    newest = at.rundir.list_checkpoints("step")[0]
    (newest / "state.pt").unlink()
    with caplog.at_level(logging.WARNING):
        assert desk(attempt=2).session.restore()["step"] == 1
    assert f"{newest}: state.pt is missing; passed over" in caplog.text


# The best weights


@settings(max_examples=15)
@given(st.lists(st.floats(), min_size=1, max_size=6))
def test_the_best_weights_are_those_of_the_smallest_metric(tmp_path_factory, metrics):
    at = Desk(tmp_path_factory.mktemp("run"))
    model = torch.nn.Linear(1, 1)
    for step, metric in enumerate(metrics, 1):
        with torch.no_grad():
            model.weight.fill_(step)
        at.session.save({"step": step, "model": model}, metric)
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
    desk(every_steps=1).session.save({"step": 1, "model": model}, metric=0.5)
    at = desk(attempt=2)
    at.session.restore()
    at.session.save({"step": 2, "model": model}, metric=0.6)
    assert at.steps("best") == [1]
    at.session.save({"step": 3, "model": model}, metric=0.4)
    assert at.steps("best") == [3]


def test_the_best_weights_come_without_what_only_training_needs(desk):
    at = desk()
    model, optimizer = toy()
    at.session.save({"step": 1, "model": model, "optimizer": optimizer, "words": ["a"]}, metric=0.5)
    best = load(at.rundir.list_checkpoints("best")[0])
    assert best.keys() == {"step", "model", "words"}
    assert weights_sha256(best["model"]) == weights_sha256(model.state_dict())


def test_no_best_weights_are_kept_where_none_are_wanted(desk):
    at = desk(best=False)
    at.session.save({"step": 1, "model": toy()[0]}, metric=0.5)
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
        at.session.save({"step": step, "model": model, "optimizer": optimizer}, metric=1.0 / step)
    assert at.session.finish(at_end) == weights_sha256(model.state_dict())
    assert (at.steps(), at.steps("final"), at.steps("best")) == (states, final, [5])


def test_final_weights_are_the_last_and_light(desk):
    at = desk()
    model, optimizer = toy()
    at.session.save({"step": 1, "model": model, "optimizer": optimizer, "words": ["a"]})
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
    at.session.save({"step": 5, "model": model, "optimizer": optimizer, "words": ["a"]}, metric=0.25)
    at = desk(attempt=2)
    at.session.restore()
    assert at.session.finish(at_end) == weights_sha256(model.state_dict())
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
    first.session.save({"step": 1, "model": toy()[0]})
    second = desk(attempt=2)
    second.session.restore()
    second.session.log({"train/loss": 1.0}, 2)
    assert second.opened[0].opened_at == 1
    assert second.opened[0].logged == [(2, {"train/loss": 1.0})]


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
    at.session.write_status("FAILED", "so")
    status = json.loads(at.rundir.status.read_text())
    assert status.pop("heartbeat") > 0
    assert status == {
        "state": "FAILED", "step": 7, "loss": 2.0, "val_loss": 3.0, "samples_per_s": 10.0, "reason": "so",
    }  # fmt: skip
