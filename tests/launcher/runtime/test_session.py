"""The session: when it saves, what it restores."""

from __future__ import annotations

import logging
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.world import World
from tests.launcher.runtime.desk import Desk, toy
from tests.launcher.runtime.saving import Gate

# When it saves


def test_a_state_is_saved_on_the_cadence_and_at_no_other_step(desk):
    at = desk(every_steps=3, keep_last=9)
    for step in range(1, 8):
        at.save(step)
    assert at.steps() == [3, 6]
    assert at.session.saved_step == 6


def test_without_a_cadence_nothing_is_saved_on_the_way(desk):
    at = desk()
    for step in range(1, 8):
        at.save(step)
    assert at.steps() == []
    assert at.session.saved_step is None


def test_a_stop_saves_the_step_at_hand(desk, raised):
    at = desk()
    assert at.session.should_stop() is False
    at.save(1)
    raised(at.stop)
    assert at.session.should_stop() is True
    at.save(2)
    assert at.steps() == [2]


def test_a_stop_once_heard_stays(desk, raised):
    at = desk()
    raised(at.stop)
    assert [at.session.should_stop(), at.session.should_stop(), at.session.stopping] == [True] * 3


def test_before_the_restore_a_stop_is_heard_and_decides_nothing(desk, raised):
    at = desk(fresh=False)
    assert at.session.should_stop() is False
    raised(at.stop)
    assert (at.session.should_stop(), at.session.stopping) == (True, False)
    at.session.restore()
    assert (at.session.should_stop(), at.session.stopping) == (True, True)


def test_a_save_before_the_restore_is_an_error_of_the_task(desk):
    at = desk(fresh=False, every_steps=1)
    with pytest.raises(RuntimeError, match=r"session\.save\(\) before session\.restore\(\)"):
        at.save(1)
    assert at.steps() == []


def test_a_second_restore_is_an_error_of_the_task(desk):
    with pytest.raises(RuntimeError, match="it would look like a fresh start"):
        desk().session.restore()


def test_the_sessions_own_key_may_not_be_taken(desk):
    with pytest.raises(ValueError, match="may not have a key 'session'"):
        desk(every_steps=1).save(1, session={})


def test_the_loop_does_not_wait_for_the_disk_but_a_stop_does(desk, raised, monkeypatch):
    at, gate = desk(every_steps=1), Gate(monkeypatch)
    at.session.save({"step": 1, "model": toy()[0]})
    assert gate.reached.wait(60)
    assert at.session.should_stop() is False and at.steps() == []
    raised(at.stop)
    assert at.session.should_stop() is True
    settled = []
    waiting = threading.Thread(target=lambda: settled.append(at.session.settle()))
    waiting.start()
    assert waiting.is_alive() and settled == []
    gate.open.set()
    waiting.join()
    assert (settled, at.steps()) == ([True], [1])


def test_how_long_the_loop_waited_is_logged_with_the_next_numbers(desk):
    at = desk(every_steps=1)
    at.session.log({"train/loss": 2.0}, 1)
    at.save(1)
    at.session.log({"train/loss": 1.0}, 2)
    at.session.log({"train/loss": 0.5}, 3)
    (_, first), (_, second), (_, third) = at.opened[0].logged
    assert "time/save" not in first and second["time/save"] >= 0 and "time/save" not in third


def test_each_sign_of_progress_is_told_to_the_watch(desk):
    at = desk()
    before = len(at.beats)
    at.session.log({}, 1), at.session.should_stop(), at.save(1)
    assert len(at.beats) == before + 3


# What it restores


def test_on_a_fresh_start_there_is_nothing_to_restore(desk):
    at = desk()
    assert at.restored is None
    assert (at.session.step, at.session.saved_step, at.session.best_metric) == (0, None, None)


def test_model_optimizer_step_best_metric_and_plain_values_come_back(desk):
    model, optimizer = toy()
    state = {"step": 4, "model": model, "optimizer": optimizer, "words": ["a", "b"], "scale": torch.tensor(2.0)}
    at = desk(every_steps=2)
    at.session.save(state, metric=0.25)
    at.saver.wait()
    at = desk(attempt=2)
    saved, session = at.restored, at.session
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


def seed_all(seed):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), warm=st.integers(0, 3))
def test_all_random_generators_go_on_as_if_nothing_had_happened(tmp_path_factory, seed, warm):
    folder, model = tmp_path_factory.mktemp("run"), toy()[0]
    at = Desk(folder, every_steps=1)
    seed_all(seed)
    for _ in range(warm):
        draws()
    at.save(1, model)
    expected = draws()
    seed_all(1)
    assert draws() != expected
    Desk(folder, attempt=2)
    assert draws() == expected


def test_with_another_number_of_ranks_the_tasks_own_seeds_stay(desk):
    desk(every_steps=1).save(1)
    seed_all(5)
    expected = draws()
    seed_all(5)
    desk(attempt=2, world=World(rank=1, size=2))
    assert draws() == expected


def test_a_state_saved_beside_more_gpus_is_restored_on_a_machine_with_fewer(desk, monkeypatch):
    here = torch.cuda.device_count()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()] * (here + 1))
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        desk(every_steps=1).save(1)
        assert desk(attempt=2).restored["step"] == 1


def test_a_damaged_state_is_warned_of_and_the_one_before_is_restored(desk, caplog):
    at = desk(every_steps=1)
    for step in (1, 2):
        at.save(step)
    newest = at.rundir.list_checkpoints("step")[0]
    (newest / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        at = desk(attempt=2)
    assert (at.restored["step"], at.session.saved_step) == (1, 1)
    assert f"{newest}: model.safetensors is missing; passed over" in caplog.text
