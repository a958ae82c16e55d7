"""Workers of a study as real processes: racing, stopped, killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.runtime.errors import ExitCode
from slurm.processes import wait_until
from sweeps.study.folder import StudyDir
from tests.sweeps.study.lab import TOKEN, assert_whole, definition, ended, made, start, trials

pytestmark = pytest.mark.slow


def steps(folder: StudyDir, number: int) -> list[int]:
    """Every step that a trial has computed, in order."""
    told = folder.read_trial(number)
    file = told.plan.rundir.path / "steps" if told else None
    return [int(line) for line in file.read_text().split()] if file and file.exists() else []


def reached(what: Callable[[], object]) -> None:
    assert wait_until(what, 120)


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_eight_workers_from_an_empty_folder_make_64_trials_and_no_65th(tmp_path: Path, storage: str):
    folder = made(tmp_path, definition(tmp_path, n_trials=64, storage=storage, sampler="random", steps=1))
    assert not folder.journal.exists() and not folder.database.exists()
    assert ended(start(folder, 8)) == [0] * 8
    assert_whole(folder, 64)
    assert all(steps(folder, number) == [1] for number in range(64))


def test_a_worker_that_is_told_to_stop_gives_its_trial_back_and_another_goes_on(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=2, steps=3, hold_at=2))
    (worker,) = start(folder)
    reached(lambda: steps(folder, 0) == [1, 2])
    worker.send_signal(signal.SIGTERM)
    assert ended([worker]) == [ExitCode.STOPPED_SAVED]
    assert folder.queue.list_waiting() == ["000000"]
    assert [trial.state.name for trial in trials(folder)] == ["RUNNING"]
    (folder.path / "go").touch()
    assert ended(start(folder)) == [0]
    assert steps(folder, 0) == [1, 2, 3], "no step is done again"
    assert_whole(folder, 2)


def test_children_that_hear_of_the_stop_before_their_worker_tells_them_are_given_back_too(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=1, steps=3, hold_at=2))
    (worker,) = start(folder, process_group=0)
    reached(lambda: steps(folder, 0) == [1, 2])
    os.killpg(worker.pid, signal.SIGTERM)  # as Slurm does
    assert ended([worker]) == [ExitCode.STOPPED_SAVED]
    assert folder.queue.list_waiting() == ["000000"]
    assert [trial.state.name for trial in trials(folder)] == ["RUNNING"]


def test_a_workers_trial_goes_on_from_its_checkpoint_when_the_worker_was_killed(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=2, steps=4, hold_at=3))
    (worker,) = start(folder)
    reached(lambda: steps(folder, 0) == [1, 2, 3] and told_step(folder) >= 2)
    worker.kill()
    worker.communicate()
    assert folder.queue.claims().keys() == {"000000"}
    (folder.path / "go").touch()
    assert ended(start(folder, 2)) == [0, 0]
    again = steps(folder, 0)
    assert again[:3] == [1, 2, 3] and again[-2:] == [3, 4] and again.count(1) == 1, again
    assert_whole(folder, 2)


def test_trials_are_pruned_while_they_train(tmp_path: Path):
    space = {"width": {"choices": [1, 10, 20, 30, 40]}, "heads": {"choices": [1]}}
    said = {"pruner": "median", "startup_trials": 1, "sampler": "grid", "steps": 5, "n_trials": 5}
    folder = made(tmp_path, definition(tmp_path, space, **said))
    assert ended(start(folder)) == [0]
    found = trials(folder)
    pruned = [trial for trial in found if trial.state.name == "PRUNED"]
    assert len(found) == 5 and pruned and {t.state.name for t in found} == {"PRUNED", "COMPLETE"}
    for trial in found:
        told = folder.read_trial(trial.number)
        status = told.plan.rundir.read_status()
        if trial in pruned:
            assert status["state"] == "CANCELLED" and status["reason"].startswith("pruned at step 1: val/loss ")
            assert steps(folder, trial.number) == [1] and list(trial.intermediate_values) == [1]
        else:
            assert status["state"] == "COMPLETED" and list(trial.intermediate_values) == [1, 2, 3, 4, 5]


def test_a_worker_is_refused_a_submission_that_was_withdrawn_and_one_without_a_study(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=1))
    folder.frozen(TOKEN).unlink()
    (worker,) = start(folder)
    said = worker.communicate(timeout=60)[1]
    assert worker.returncode == 1 and said.count("\n") == 1 and "type the command of the study again" in said


def told_step(folder: StudyDir) -> int:
    told = folder.read_trial(0)
    return told.plan.rundir.newest_step() if told else 0
