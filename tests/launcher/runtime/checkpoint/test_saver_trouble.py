"""The saver in trouble: disks that fail, weights that are not finite, another attempt that has the run."""

from __future__ import annotations

import errno
import math
import os
import threading
from pathlib import Path

import pytest
import torch

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.files import write_json
from launcher.runtime.rundir import RunDir
from tests.launcher.runtime.saving import Gate, litter, make_saver, same, save, state, steps, wish


class Failing:
    """Calls of the system that fail from the ``n``-th on, ``times`` of them."""

    NAMES = ("os.write", "os.fsync", "os.mkdir", "os.rename", "os.open")

    def __init__(self, patch, n: int, times: int, code: int) -> None:
        self.seen, self.failed, self._n, self._times, self._code = 0, 0, n, times, code
        for name in self.NAMES:
            patch.setattr(name, self._wrapped(getattr(os, name.removeprefix("os."))))

    def _wrapped(self, real):
        def call(*args, **kwargs):
            if threading.current_thread().name != "save":
                return real(*args, **kwargs)
            self.seen += 1
            if self.seen >= self._n and self.failed < self._times:
                self.failed += 1
                raise OSError(self._code, os.strerror(self._code))
            return real(*args, **kwargs)

        return call


def calls_of_a_save(folder, monkeypatch):
    saver = make_saver(folder)
    save(saver, 1)
    with monkeypatch.context() as patch:
        counter = Failing(patch, 1, 0, 0)
        save(saver, 2)
    return counter.seen


@pytest.mark.parametrize("times", [1, math.inf], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_disk_that_fails_at_any_call_leaves_what_was_there_and_the_next_save_is_clean(
    tmp_path, monkeypatch, times, code
):
    n_calls = calls_of_a_save(tmp_path / "counted", monkeypatch)
    assert n_calls > 10
    failures = 0
    for n in range(1, n_calls + 1):
        folder = tmp_path / str(n)
        saver = make_saver(folder)
        before = save(saver, 1)
        with monkeypatch.context() as patch:
            failing = Failing(patch, n, times, code)
            save(saver, 2)
            assert failing.failed
        assert same(load(before), state(1))
        for found in RunDir(folder).list_checkpoints("step"):
            load(found)  # whole, also if the last fsync failed behind the rename
        failures += saver.failures
        if saver.failures:
            assert (saver.failures, saver.committed, saver.error) == (1, 1, os.strerror(code))
        save(saver, 3)
        assert (saver.failures, saver.committed, saver.requested) == (0, 3, 3)
        assert same(load(RunDir(folder).checkpoint("step", 3, 1)), state(3))
        assert litter(folder) == set() and 1 not in steps(folder)[:1]
    assert failures >= n_calls - 6  # a hint and clearing up may fail unnoticed, a write may not


def test_failures_are_counted_until_one_succeeds(tmp_path, monkeypatch):
    saver = make_saver(tmp_path)
    with monkeypatch.context() as patch:
        Failing(patch, 1, math.inf, errno.ENOSPC)
        for count in (1, 2, 3):
            save(saver, count)
            assert (saver.failures, saver.error) == (count, "No space left on device")
    save(saver, 4)
    assert (saver.failures, saver.committed) == (0, 4)


def test_a_step_that_is_there_but_was_not_made_durable_may_be_saved_again(tmp_path, monkeypatch):
    saver, real = make_saver(tmp_path), os.fsync

    def fail_on_parent(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink() == RunDir(tmp_path).checkpoints:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_on_parent)
        save(saver, 1)
    assert (saver.failures, saver.committed, steps(tmp_path)) == (1, None, [1])
    save(saver, 1, state(1) | {"words": "again"})
    assert (saver.failures, saver.committed, litter(tmp_path)) == (0, 1, set())
    assert load(RunDir(tmp_path).checkpoint("step", 1, 1))["words"] == "again"


def test_a_best_that_fails_keeps_nobody_from_the_full_state(tmp_path, monkeypatch):
    saver, content = make_saver(tmp_path), state(1)
    with monkeypatch.context() as patch:
        Failing(patch, 1, 1, errno.EIO)
        saver.start(content, [wish(1, content, "best", 0.5), wish(1, content)])
        saver.wait()
    assert (saver.failures, saver.committed, steps(tmp_path), steps(tmp_path, "best")) == (1, 1, [1], [])


# Weights that are not finite


@pytest.mark.parametrize("kinds", [["step"], ["best"], ["best", "step"]])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, kinds):
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    content = {"step": 1, "model": model}
    saver = make_saver(tmp_path)
    saver.start(content, [wish(1, content, kind) for kind in kinds])
    saver.wait()
    assert (saver.not_finite, saver.failures, saver.error) == ("weight", 1, "the weights weight are not finite")
    assert not RunDir(tmp_path).list_checkpoints("step") and not RunDir(tmp_path).list_checkpoints("best")


def test_buffers_may_hold_infinities(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    path = save(make_saver(tmp_path), 1, {"step": 1, "model": model})
    assert load(path)["model"]["mask"].tolist() == [0.0, -math.inf]


# Another attempt


def taken_over(folder):
    write_json(RunDir(folder).lease, {"token": "another", "attempt": 9, "host": "there"})


@pytest.mark.parametrize("kind", ["step", "best", "final"])
def test_who_has_lost_the_run_commits_nothing_and_touches_nothing(tmp_path, kind):
    saver = make_saver(tmp_path)
    save(saver, 1)
    taken_over(tmp_path)
    theirs = RunDir(tmp_path).unfinished(RunDir(tmp_path).checkpoint("step", 5, 9))
    theirs.mkdir()
    save(saver, 2, kind=kind)
    assert str(saver.superseded) == "attempt 9 on there has taken the run over"
    assert (steps(tmp_path), steps(tmp_path, kind)[:1], litter(tmp_path)) == (
        [1], [1] if kind == "step" else [], {theirs.name},
    )  # fmt: skip


def test_who_loses_the_run_while_it_saves_does_not_commit(tmp_path, monkeypatch):
    saver, gate = make_saver(tmp_path), Gate(monkeypatch)
    saver.start(state(2), [wish(2, state(2))])
    assert gate.reached.wait(60)
    monkeypatch.undo()
    taken_over(tmp_path)
    gate.open.set()
    saver.wait()
    assert saver.superseded is not None and saver.committed is None
    assert (steps(tmp_path), litter(tmp_path)) == ([], set())


def test_without_a_lease_file_the_holder_goes_on(tmp_path):
    saver = make_saver(tmp_path)
    for damaged in (lambda p: p.unlink(), lambda p: p.write_text("{torn")):
        damaged(RunDir(tmp_path).lease)
        save(saver, 1)
    assert saver.superseded is None and saver.committed == 1
