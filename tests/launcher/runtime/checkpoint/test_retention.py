"""What is kept: enough that are known to be whole, whatever lies beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.rundir import RunDir
from tests.launcher.runtime.saving import flip, litter, make_saver, save, steps


def tiny(step):
    return {"step": step}


@settings(max_examples=15)
@given(
    st.sets(st.integers(1, 30), min_size=1, max_size=7).map(sorted),
    st.integers(2, 4),
    st.none() | st.integers(1, 6),
)
def test_the_last_few_and_the_round_ones_are_kept(saved, keep_last, keep_every):
    with tempfile.TemporaryDirectory() as folder:
        saver = make_saver(Path(folder), keep_last=keep_last, keep_every=keep_every)
        for step in saved:
            save(saver, step, tiny(step))
        round_ones = {step for step in saved if keep_every and step % keep_every == 0}
        assert set(steps(Path(folder))) == {*saved[-keep_last:]} | round_ones
        assert litter(Path(folder)) == set()


@settings(max_examples=15)
@given(
    older=st.lists(st.booleans(), min_size=1, max_size=5),
    n_new=st.integers(1, 4),
    keep_last=st.integers(2, 3),
    data=st.data(),
)
def test_after_a_resume_as_many_whole_ones_as_asked_for_are_there_before_any_goes(older, n_new, keep_last, data):
    """``older``: whether each checkpoint of the attempt before was found whole; the newest whole one is resumed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = make_saver(folder, keep_every=1)
        paths = [save(first, 10 * i, tiny(10 * i)) for i in range(1, len(older) + 1)]
        for path, whole in zip(paths, older, strict=True):
            if not whole:
                flip(path / "rank0000.json")
        resumed = next((path for path, whole in zip(reversed(paths), reversed(older), strict=True) if whole), None)
        second = make_saver(folder, attempt=2, restored=resumed, keep_last=keep_last)
        began = 0 if resumed is None else int(resumed.name[5:17])
        assert second.committed == (began or None)
        verified = [] if resumed is None else [resumed]
        for i in range(1, n_new + 1):
            before = set(RunDir(folder).list_checkpoints("step"))
            verified.insert(0, save(second, began + i, tiny(began + i)))
            there = set(RunDir(folder).list_checkpoints("step"))
            if len(verified) < keep_last:
                assert there == before | {verified[0]}
            else:
                assert there == set(verified[:keep_last])
            assert all(load(path) for path in verified[:keep_last])


@pytest.mark.parametrize("keep_last", [2, 3])
def test_the_one_resumed_from_goes_only_when_enough_newer_ones_are_whole(tmp_path, keep_last):
    origin = save(make_saver(tmp_path), 10, tiny(10))
    saver = make_saver(tmp_path, attempt=2, restored=origin, keep_last=keep_last)
    for step in range(11, 11 + keep_last - 1):
        save(saver, step, tiny(step))
        assert origin.exists()
    save(saver, 20, tiny(20))
    assert not origin.exists() and len(steps(tmp_path)) == keep_last


def test_damaged_ones_of_later_steps_do_not_count_as_newest(tmp_path):
    newest = save(make_saver(tmp_path), 20, tiny(20))
    flip(newest / "rank0000.json")
    saver = make_saver(tmp_path, attempt=2)
    for step in (5, 10, 15):
        path = save(saver, step, tiny(step))
        assert load(path)["step"] == step
    assert steps(tmp_path) == [15, 10]


def test_round_ones_of_earlier_attempts_stay(tmp_path):
    origin = save(make_saver(tmp_path, keep_every=10), 10, tiny(10))
    saver = make_saver(tmp_path, attempt=2, restored=origin, keep_every=10)
    for step in (11, 12, 13):
        save(saver, step, tiny(step))
    assert steps(tmp_path) == [13, 12, 10]


def test_a_save_that_failed_deletes_nothing(tmp_path, monkeypatch):
    saver = make_saver(tmp_path)
    for step in (1, 2):
        save(saver, step, tiny(step))
    with monkeypatch.context() as patch:
        patch.setattr("launcher.runtime.checkpoint.saver.commit", lambda *args: (_ for _ in ()).throw(OSError("no")))
        for step in (3, 4, 5):
            save(saver, step, tiny(step))
    assert (steps(tmp_path), saver.failures) == ([2, 1], 3)


def test_what_cannot_be_deleted_is_warned_of_and_is_no_failure(tmp_path, monkeypatch, caplog):
    saver = make_saver(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "launcher.runtime.checkpoint.saver.remove", lambda *args: (_ for _ in ()).throw(OSError(1, "stuck"))
        )
        for step in (1, 2, 3):
            save(saver, step, tiny(step))
    assert (steps(tmp_path), saver.failures) == ([3, 2, 1], 0)
    assert f"{RunDir(tmp_path).checkpoint('step', 1, 1)} cannot be deleted: stuck" in caplog.text
    save(saver, 4, tiny(4))
    assert steps(tmp_path) == [4, 3]
