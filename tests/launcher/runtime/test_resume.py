"""Resuming: the newest checkpoint that is whole, of this run and of its line; never a silent start from nothing."""

from __future__ import annotations

import logging
import shutil

import pytest

from launcher.runtime import fingerprint
from launcher.runtime.checkpoint.manifest import NAME
from launcher.runtime.errors import UserError
from launcher.runtime.resume import find
from launcher.runtime.rundir import RunDir
from launcher.runtime.world import World
from tests.launcher.runtime.saving import DAMAGES, RUN_ID, begin, flip, make_saver, same, save, state

FILES = (NAME, "model.safetensors", "rank0000.json")


@pytest.fixture
def saved(tmp_path):
    """``saved(1, 2, 3)``: the folders of these steps, newest first, all there."""

    def make(*numbers, run_id=RUN_ID, attempt=1):
        saver = make_saver(tmp_path, attempt, run_id=run_id, keep_every=1)
        return [save(saver, step) for step in numbers][::-1]

    return make


@pytest.fixture
def search(tmp_path):
    return lambda **changes: find(
        RunDir(tmp_path), RUN_ID, World(), restart_if_damaged=changes.get("restart_if_damaged", False)
    )


def test_a_run_without_checkpoints_starts_afresh(search):
    found = search()
    assert (found.restored, found.problems) == (None, [])


def test_the_newest_is_the_one_of_the_latest_step_then_attempt(saved, search):
    saved(1, 2)
    (newest,) = saved(2, attempt=2)
    found = search()
    assert (found.restored.path, found.problems) == (newest, [])
    assert same(found.restored.content, state(2))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_is_told_and_the_one_before_is_used(saved, search, caplog, name, damage):
    newest, before, _ = saved(1, 2, 3)
    damage(newest / name)
    found = search()
    assert found.restored.path == before
    assert len(found.problems) == 1 and str(newest) in found.problems[0] and name in found.problems[0]
    assert f"{found.problems[0]}; passed over" in caplog.text


def test_where_all_are_damaged_it_refuses_and_says_what_to_do(saved, search):
    folders = saved(1, 2, 3)
    for folder in folders:
        flip(folder / "model.safetensors")
    words = rf"none of its 3 checkpoints can be used .*{folders[0].name}.*checkpoint\.restart_if_damaged=true$"
    with pytest.raises(UserError, match=words):
        search()
    found = search(restart_if_damaged=True)
    assert found.restored is None
    assert [folder.name in problem for folder, problem in zip(folders, found.problems, strict=True)] == [True] * 3


@pytest.mark.parametrize("kind", ["absent", "stale", "dangling", "damaged", "folder"])
def test_the_hint_of_the_latest_is_never_needed(tmp_path, saved, search, kind):
    newest, before = saved(1, 2)
    latest = RunDir(tmp_path).latest
    assert latest.read_text() == newest.name
    latest.unlink()
    if kind == "folder":
        latest.mkdir()
    elif kind != "absent":
        text = {"stale": before.name, "dangling": "step-000000000099.a0001", "damaged": "\0\xff"}[kind]
        latest.write_text(text)
    assert search().restored.path == newest


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path, saved, search):
    (mine,) = saved(1)
    saved(2, run_id="another")
    found = search()
    assert found.restored.path == mine and "is not what its place says (another, step 2" in found.problems[0]


@pytest.mark.parametrize(("step", "attempt"), [(9, 1), (2, 7)])
def test_a_checkpoint_under_another_name_is_not_taken(tmp_path, saved, search, step, attempt):
    newest, _ = saved(1, 2)
    shutil.copytree(newest, RunDir(tmp_path).checkpoint("step", step, attempt))
    found = search()
    assert found.restored.path == newest and "is not what its place says" in found.problems[0]


def test_orphans_are_told_and_passed_over(tmp_path, saved, search, caplog):
    begin(tmp_path, 1, None)
    newest, before = saved(1, 2)
    begin(tmp_path, 2, before)
    found = search()
    assert (found.restored.path, found.problems) == (before, [])
    assert f"checkpoint {newest.name} was committed by an attempt that had been given up; passed over" in caplog.text


def test_after_a_deliberate_fresh_start_old_ones_are_not_taken_and_are_no_problem(tmp_path, saved, search):
    begin(tmp_path, 1, None)
    saved(1, 2)
    begin(tmp_path, 2, None)
    found = search()
    assert (found.restored, found.problems) == (None, [])


def test_unfinished_ones_do_not_count(tmp_path, saved, search):
    newest, before = saved(1, 2)
    newest.rename(RunDir(tmp_path).unfinished(newest))
    assert search().restored.path == before


def test_another_machine_is_warned_of_and_used(saved, search, caplog, monkeypatch):
    saved(1)
    with caplog.at_level(logging.WARNING):
        search()
        assert "last bits" not in caplog.text
        monkeypatch.setattr(fingerprint.torch, "get_num_threads", lambda: 77)
        assert search().restored.manifest.step == 1
    assert "not what the checkpoint was made with, the last bits may differ: threads 1 -> 77" in caplog.text


def test_what_differs_of_two_fingerprints_is_named():
    now = fingerprint.fingerprint(World(size=4, nodes=2))
    assert (now["ranks"], now["nodes"]) == (4, 2)
    assert fingerprint.differences(now, now) == []
    assert fingerprint.differences(now | {"ranks": 2, "old": 1}, now | {"new": 1}) == ["ranks 2 -> 4"]


def test_checkpoints_that_are_gone_are_no_reason_to_start_over_in_silence(saved, search, tmp_path):
    (newest,) = saved(1)
    rundir = RunDir(tmp_path)
    rundir.add_attempt_event(event="start", attempt=2, step=1, **{"from": newest.name})
    shutil.rmtree(newest)
    with pytest.raises(UserError, match=f"{newest.name}: an attempt went on from it, and it is gone"):
        search()
    assert search(restart_if_damaged=True).restored is None


@pytest.mark.parametrize(("saved_step", "refused"), [(None, False), (0, False), (21, True)])
def test_a_run_that_has_saved_must_have_left_a_checkpoint(tmp_path, saved_step, refused):
    rundir = RunDir(tmp_path)
    rundir.write_status(state="RUNNING", step=40, saved_step=saved_step)
    if not refused:
        assert find(rundir, RUN_ID, World(), restart_if_damaged=False).restored is None
        return
    with pytest.raises(UserError, match=f"step {saved_step} was saved, and no checkpoint is there"):
        find(rundir, RUN_ID, World(), restart_if_damaged=False)
