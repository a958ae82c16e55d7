"""Asking and telling, in this process: exact numbers, equal trials, and a worker that is killed after any step."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.runtime.errors import UserError
from launcher.runtime.pack.crew import Unreadable
from launcher.runtime.signals import StopFlag
from sweeps.study.definition import Limits
from sweeps.study.reporter import Reporter
from sweeps.study.show import show
from sweeps.study.trials import Trials
from tests import killed_at
from tests.sweeps.study.lab import assert_whole, definition, made, pretend, trials, work

STORAGES = ("journal", "sqlite")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_has_as_many_trials_as_it_was_asked_for(tmp_path: Path, storage: str, sampler: str):
    folder = made(tmp_path, definition(tmp_path, n_trials=12, storage=storage, sampler=sampler))
    assert work(folder) == 12 and work(folder) == 0
    assert_whole(folder, 12)
    members = folder.sweep.read_members()
    assert [told.plan.run_id for n in range(12) if (told := folder.read_trial(n))] == list(members)
    assert all(words[0].startswith("x=") and words[1].startswith("width=") for words in members.values())


def test_the_same_seed_draws_the_same_trials_and_another_one_others(tmp_path: Path):
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = made(tmp_path / name, definition(tmp_path / name, n_trials=7, startup_trials=3, seed=seed))
        work(folder)
        drawn[name] = [trial.params for trial in trials(folder)]
    assert drawn["a"] == drawn["b"] != drawn["c"]


def test_more_trials_extend_a_study_and_what_is_done_stays(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=3))
    work(folder)
    before = [(trial.params, trial.value) for trial in trials(folder)]
    made(tmp_path, definition(tmp_path, n_trials=5))
    assert work(folder) == 2
    assert [(trial.params, trial.value) for trial in trials(folder)][:3] == before
    assert_whole(folder, 5)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_study_whose_storage_is_gone_is_not_begun_anew_by_looking_or_by_going_on(tmp_path: Path, storage: str):
    folder = made(tmp_path, definition(tmp_path, n_trials=2, storage=storage))
    work(folder)
    file = folder.journal if storage == "journal" else folder.database
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name}: is gone, and .*trials holds its trials"):
        show(folder)
    with pytest.raises(UserError, match="is gone"):
        made(tmp_path, definition(tmp_path, n_trials=5, storage=storage))
    assert not file.exists()


def test_no_trial_begins_after_the_time_is_over(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=5, timeout_min=1.0))
    assert work(folder, most=2) == 2
    began = folder.read_limits().began
    assert began is not None
    folder.write_limits(Limits(5, 1.0, began - 61))
    assert work(folder) == 0 and len(trials(folder)) == 2
    made(tmp_path, definition(tmp_path, n_trials=5, timeout_min=1.0))  # the same command has its own minute
    assert work(folder) == 3


def test_a_grid_is_every_combination_once(tmp_path: Path):
    space = {"x": {"choices": [0.0, 0.5]}, "width": {"choices": [1, 2, 3]}}
    folder = made(tmp_path, definition(tmp_path, space, n_trials=50, sampler="grid"))
    assert work(folder, most=2) == 2 and work(folder) == 4
    assert_whole(folder, 6)
    assert {(t.params["x"], t.params["width"]) for t in trials(folder)} == {
        (x, w) for x in (0.0, 0.5) for w in (1, 2, 3)
    }


def test_equal_parameters_are_one_run_and_the_second_trial_takes_its_value(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, {"width": {"choices": [1, 2]}}, n_trials=10))
    assert work(folder) == 2
    assert_whole(folder, 10)
    assert [file.read_text() for file in folder.path.glob("*/pretended")] == ["once\n"] * 2


def test_a_trial_that_equals_a_running_one_waits_for_its_value(tmp_path: Path):
    what = definition(tmp_path, {"width": {"choices": [1]}}, n_trials=3)
    folder = made(tmp_path, what)
    with folder.queue.joined("one"), folder.queue.joined("two"):
        one, two = Trials(folder, what, "one"), Trials(folder, what, "two")
        claim = one.claim(frozenset())
        assert claim is not None and two.claim(frozenset()) is None
        assert [trial.state.name for trial in trials(folder)] == ["RUNNING"] * 3
        one.end(claim, pretend(claim))
    assert_whole(folder, 3)


def test_values_that_the_schema_does_not_take_fail_and_the_study_goes_on(tmp_path: Path):
    space = {"width": {"choices": [2, 3, 4]}, "heads": {"choices": [1, 2]}, "x": {"linear": [0.0, 1.0]}}
    folder = made(tmp_path, definition(tmp_path, space, n_trials=16))
    work(folder)
    found = trials(folder)
    failed = [trial for trial in found if trial.state.name == "FAIL"]
    assert len(found) == 16 and failed and {t.state.name for t in found} == {"FAIL", "COMPLETE"}
    assert {trial.user_attrs["reason"] for trial in failed} == {"width=3 is not divisible by heads=2"}


@pytest.mark.parametrize(
    ("summary", "state", "reason"),
    [
        ({"best_val_loss": None}, "COMPLETED", "best_val_loss is nan"),
        ({"best_val_loss": 1e999}, "COMPLETED", "best_val_loss is nan"),
        ({}, "FAILED", "FAILED"),
    ],
)
def test_a_run_without_a_value_is_a_failed_trial(tmp_path: Path, summary: dict, state: str, reason: str):
    what = definition(tmp_path, n_trials=1)
    folder = made(tmp_path, what)
    with folder.queue.joined("me"):
        source = Trials(folder, what, "me")
        claim = source.claim(frozenset())
        assert claim is not None
        source.end(claim, pretend(claim, state, **summary))
    (trial,) = trials(folder)
    assert trial.state.name == "FAIL" and trial.user_attrs["reason"] == reason


def test_a_metric_that_no_run_has_is_told_by_name(tmp_path: Path):
    folder = made(tmp_path, definition(tmp_path, n_trials=1, metric="best_val_los"))
    work(folder)
    (trial,) = trials(folder)
    assert trial.state.name == "FAIL" and "did you mean 'best_val_loss'?" in trial.user_attrs["reason"]


def test_a_step_is_reported_once_and_a_pruned_trial_is_told_whoever_comes(tmp_path: Path):
    what = definition(tmp_path, n_trials=4, pruner="median", startup_trials=0, sampler="random")
    folder = made(tmp_path, what)
    with folder.queue.joined("me"):
        source = Trials(folder, what, "me")
        for _ in range(3):
            claim = source.claim(frozenset())
            assert claim is not None
            good = Reporter(folder, what, int(claim.entry), StopFlag())
            good.log({"val/loss": 1.0}, 1), good.log({"train/loss": 3.0}, 2), good.log({"val/loss": 0.5}, 3)
            source.end(claim, pretend(claim))
        claim = source.claim(frozenset())
        assert claim is not None
        stop = StopFlag()
        Reporter(folder, what, 3, stop).log({"val/loss": 1.0}, 1)
        assert not stop
        again = Reporter(folder, what, 3, stop)  # the next attempt, from a checkpoint
        again.log({"val/loss": 1.0}, 1), again.log({"val/loss": 2.0}, 3)
        assert stop and str(stop.reason).startswith("pruned at step 3: val/loss 2 ")
        assert trials(folder)[3].intermediate_values == {1: 1.0, 3: 2.0}
    claim.plan.rundir.write_status(state="RUNNING", step=3)
    assert work(folder, "other") == 0  # it died before it could say so
    last = trials(folder)[3]
    assert last.state.name == "PRUNED" and last.value == 2.0
    assert claim.plan.rundir.read_status()["reason"] == stop.reason and claim.plan.rundir.state() == "CANCELLED"


@pytest.mark.skipif(killed_at.why_not() is not None, reason=str(killed_at.why_not()))
@pytest.mark.slow
@pytest.mark.parametrize(("storage", "each"), [("journal", 1), ("sqlite", 5)])
def test_a_worker_may_be_killed_after_any_step(tmp_path: Path, storage: str, each: int):
    """Asks, decides, claims, trains and tells one trial; then another worker finds three trials, all whole."""

    def fresh(number: int) -> Path:
        root = tmp_path / str(number)
        made(root, definition(root, n_trials=3, storage=storage), storage_too=True)
        return root

    def act(root: Path) -> None:
        what = definition(root, n_trials=3, storage=storage)
        folder = made(root, what)
        with folder.queue.joined("killed"):
            source = Trials(folder, what, "killed")
            killed_at.begin()
            claim = source.claim(frozenset())
            assert claim is not None
            source.end(claim, pretend(claim))

    after, killed = 1, 0
    while True:
        root = fresh(after)
        if killed_at.run_killed(lambda root=root: act(root), after) is not None:
            break
        folder = made(root, definition(root, n_trials=3, storage=storage))
        assert work(folder, "next") in (2, 3), after
        assert_whole(folder, 3)
        killed, after = killed + 1, after + each
    assert killed > 20


@pytest.mark.parametrize("said", [None, "{", '{"plan": {}}', "{}"])
def test_a_trial_whose_file_is_gone_or_damaged_has_failed_and_the_others_run(tmp_path: Path, said: str | None):
    folder = made(tmp_path, what := definition(tmp_path, n_trials=3))
    with folder.queue.joined("me"):
        source = Trials(folder, what, "me")
        claim = source.claim(frozenset())
        assert claim is not None
        source.give_back(claim)
        folder.trial(0).unlink()
        if said is not None:
            folder.trial(0).write_text(said)
        with pytest.raises(Unreadable, match="the trial cannot be run"):
            source.claim(frozenset())
    assert work(folder) == 2
    assert [trial.state.name for trial in trials(folder)] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert folder.queue.list_ended() == ["000000", "000001", "000002"]
