"""The saver: beside the training, one save at a time, and what fails leaves all as it was."""

from __future__ import annotations

import threading

import pytest
import torch

from launcher.runtime.checkpoint.manifest import NAME, Manifest
from launcher.runtime.checkpoint.reading import load
from launcher.runtime.rundir import RunDir
from tests.launcher.runtime.saving import Gate, litter, make_saver, same, save, state, steps, wish


@pytest.mark.parametrize("kind", ["step", "best", "final"])
def test_what_is_saved_comes_back_and_says_whose_it_is(tmp_path, kind):
    path = save(make_saver(tmp_path, attempt=7), 5, kind=kind, metric=0.25 if kind == "best" else None)
    manifest = Manifest.read(path)
    assert same(load(path), state(5))
    assert (manifest.kind, manifest.step, manifest.attempt, manifest.token) == (kind, 5, 7, "token7")
    assert (manifest.world_size, manifest.metric) == (1, 0.25 if kind == "best" else None)
    assert {e["name"] for e in manifest.files} | {NAME} == {file.name for file in path.iterdir()}


def test_an_optimizers_state_trains_on_to_the_same_weights(tmp_path):
    def trained(model, optimizer, n):
        for i in range(n):
            optimizer.zero_grad()
            model(torch.full((1, 2), float(i))).sum().backward()
            optimizer.step()

    model, again = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    trained(model, optimizer, 3)
    path = save(make_saver(tmp_path), 3, {"model": model, "optimizer": optimizer})
    trained(model, optimizer, 3)
    saved = load(path)
    again.load_state_dict(saved["model"])
    optimizer_again = torch.optim.AdamW(again.parameters())
    optimizer_again.load_state_dict(saved["optimizer"])
    trained(again, optimizer_again, 3)
    assert same(again.state_dict(), model.state_dict())


def test_the_loop_goes_on_while_a_save_is_written_and_changes_nothing_of_it(tmp_path, monkeypatch):
    saver, content, gate = make_saver(tmp_path), state(1), Gate(monkeypatch)
    saver.start(content, [wish(1, content)])
    assert gate.reached.wait(60)
    content["model"]["w"].fill_(-1)
    assert (saver.committed, saver.requested, steps(tmp_path)) == (None, 1, [])
    gate.open.set()
    saver.wait()
    assert (saver.committed, steps(tmp_path)) == (1, [1])
    assert same(load(RunDir(tmp_path).checkpoint("step", 1, 1)), state(1))


def test_the_next_save_waits_for_the_one_before(tmp_path, monkeypatch):
    saver, gate = make_saver(tmp_path), Gate(monkeypatch)
    saver.start(state(1), [wish(1, state(1))])
    assert gate.reached.wait(60)
    began = threading.Event()

    def next_one():
        began.set()
        saver.start(state(2), [wish(2, state(2))])

    second = threading.Thread(target=next_one)
    second.start()
    assert began.wait(60)
    assert saver.requested == 1 and second.is_alive()
    gate.open.set()
    second.join()
    saver.wait()
    assert (saver.committed, steps(tmp_path)) == (2, [2, 1])
    assert all(same(load(RunDir(tmp_path).checkpoint("step", n, 1)), state(n)) for n in (1, 2))


def test_a_wait_may_be_given_up_and_taken_up_again(tmp_path, monkeypatch):
    saver, gate = make_saver(tmp_path), Gate(monkeypatch)
    saver.start(state(1), [wish(1, state(1))])
    assert gate.reached.wait(60)
    saver.wait(timeout_s=0.01)
    assert saver.committed is None
    gate.open.set()
    saver.wait()
    assert saver.committed == 1


def test_what_cannot_be_saved_is_told_to_the_loop_at_once(tmp_path):
    saver = make_saver(tmp_path)
    for content, words in (({"model": {"a": {1}}}, r"^state model\.a: a set"), ({"a b": 1}, r"^state 'a b': the name")):
        with pytest.raises(TypeError, match=words):
            save(saver, 1, content)
    assert steps(tmp_path) == []
    save(saver, 2)
    assert steps(tmp_path) == [2]


# Best and final


def test_a_new_best_replaces_the_one_before_and_nothing_else(tmp_path):
    saver = make_saver(tmp_path)
    save(saver, 1)
    save(saver, 1, kind="best", metric=0.5)
    best = save(saver, 2, kind="best", metric=0.4)
    assert (steps(tmp_path, "best"), steps(tmp_path), saver.committed) == ([2], [1], 1)
    assert load(best)["step"] == 2


def test_final_weights_that_are_the_best_ones_share_their_files(tmp_path):
    saver = make_saver(tmp_path)
    best, final = save(saver, 2, kind="best", metric=0.4), save(saver, 2, kind="final")
    shared = [file.name for file in final.iterdir() if file.samefile(best / file.name)]
    assert sorted(shared) == ["model.safetensors", "rank0000.json"]
    later = save(saver, 3, kind="best", metric=0.3)
    assert steps(tmp_path, "best") == [3] and load(final)["step"] == 2 and load(later)["step"] == 3


def test_only_the_entries_asked_for_are_in_a_checkpoint(tmp_path):
    saver, content = make_saver(tmp_path), state(3)
    saver.start(content, [wish(3, {"model": 1, "step": 1}, "best", 0.5), wish(3, content)])
    saver.wait()
    assert load(RunDir(tmp_path).checkpoint("best", 3, 1)).keys() == {"step", "model"}
    assert load(RunDir(tmp_path).checkpoint("step", 3, 1)).keys() == content.keys()


def test_dropping_the_states_leaves_the_weights(tmp_path):
    saver = make_saver(tmp_path)
    for step in (1, 2):
        save(saver, step)
    save(saver, 1, kind="best", metric=0.5)
    save(saver, 2, kind="final")
    saver.drop_states()
    assert (steps(tmp_path), steps(tmp_path, "best"), steps(tmp_path, "final")) == ([], [1], [2])
    assert not RunDir(tmp_path).latest.exists() and litter(tmp_path) == set()
