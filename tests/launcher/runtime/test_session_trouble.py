"""The session in trouble: weights that are not finite, disks that are full, another attempt that has the run."""

from __future__ import annotations

import errno
import json
import math
import os
import threading

import pytest
import torch

from launcher.runtime.errors import ExitCode, TrainingFailed, UserError
from launcher.runtime.files import write_json
from launcher.runtime.lease import Superseded
from tests.launcher.runtime.desk import toy
from tests.launcher.runtime.saving import litter


def test_weights_that_are_not_finite_end_the_run_and_are_not_kept(desk):
    at = desk(every_steps=1)
    model, _ = toy()
    at.save(1, model)
    with torch.no_grad():
        model.bias[0] = math.inf
    at.save(2, model)
    with pytest.raises(TrainingFailed, match=r"^step 2: the weights are not finite \(bias\), nothing of it was saved;"):
        at.session.should_stop()
    assert at.steps() == [1] and litter(at.rundir.path) == set()


class Full:
    """A disk that is full as long as it is said to be."""

    def __init__(self, monkeypatch):
        self.full, self._real = True, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor, data):
        if self.full and threading.current_thread().name == "save":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._real(descriptor, data)


def test_three_saves_in_a_row_that_fail_end_the_run_with_a_line_that_names_the_disk(desk, monkeypatch):
    at = desk(every_steps=1)
    at.save(1)
    Full(monkeypatch)
    for step in (2, 3):
        at.save(step)
        assert at.session.should_stop() is False
    at.session.log({"train/loss": 1.0}, 3)
    assert at.opened[0].logged[-1][1]["checkpoint/failures"] == 2
    at.save(4)
    with pytest.raises(UserError) as caught:
        at.session.should_stop()
    words = str(caught.value)
    assert words.startswith(f"run {at.rundir.path}: step 4 cannot be saved: No space left on device; ")
    assert words.count("\n") == 0 and caught.value.code == ExitCode.USER_ERROR
    assert (at.steps(), at.session.saved_step, at.session.save_problem) == ([1], 1, "No space left on device")


def test_two_failures_are_forgotten_after_a_save(desk, monkeypatch):
    at, disk = desk(every_steps=1, keep_last=9), Full(monkeypatch)
    for step in range(1, 7):
        disk.full = step % 3 != 0
        at.save(step)
        assert at.session.should_stop() is False
    assert at.steps() == [3, 6]


def test_a_last_save_that_failed_is_tried_once_more_at_the_end(desk, monkeypatch):
    at, disk = desk(every_steps=1), Full(monkeypatch)
    at.save(1)
    assert at.steps() == []
    disk.full = False
    at.session.finish("state")
    assert at.steps() == [1]


def test_a_run_whose_last_state_cannot_be_kept_does_not_end_well(desk, monkeypatch):
    at = desk()
    at.save(1)
    Full(monkeypatch)
    with pytest.raises(UserError, match="step 1 cannot be saved: No space left"):
        at.session.finish("state")


def test_a_stop_whose_save_failed_is_known(desk, raised, monkeypatch):
    at = desk()
    Full(monkeypatch)
    raised(at.stop)
    at.session.should_stop()
    at.save(1)
    assert at.session.settle() is False
    assert at.session.save_problem == "No space left on device"


def taken_over(at):
    write_json(at.rundir.lease, {"token": "another", "attempt": 9, "host": "there"})
    at.rundir.write_status(state="RUNNING", step=0)


def test_a_superseded_attempt_ends_and_saves_nothing(desk):
    at = desk(every_steps=1)
    taken_over(at)
    at.save(1)
    with pytest.raises(Superseded, match="attempt 9 on there has taken the run over"):
        at.session.should_stop()
    with pytest.raises(Superseded):
        at.session.settle()
    with pytest.raises(Superseded):
        at.session.finish("state")
    assert at.steps() == []
    assert json.loads(at.rundir.status.read_text()) == {"state": "RUNNING", "step": 0}


def test_a_superseded_attempt_that_saved_nothing_meanwhile_ends_too(desk):
    at = desk()
    at.save(1)
    taken_over(at)
    with pytest.raises(Superseded):
        at.session.settle()
