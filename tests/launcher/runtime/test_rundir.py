"""The run directory: names of its files, order of its checkpoints, its lock, status and events."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir

_HOLD = """
import sys
from pathlib import Path
from launcher.runtime.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(rundir: RunDir) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of ``rundir`` for the time of the block."""
    words = [sys.executable, "-c", _HOLD, str(rundir.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            yield other
        finally:
            other.kill()


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def test_every_file_of_a_run_stands_inside_its_folder_under_a_name_of_its_own(rundir):
    names = [n for n, v in vars(RunDir).items() if isinstance(v, property)]
    paths = [getattr(rundir, name) for name in names] + [rundir.log(0), rundir.log(1), rundir.checkpoint("step", 1, 1)]
    assert all(path.is_relative_to(rundir.path) and path != rundir.path for path in paths)
    assert len(set(paths)) == len(paths)


def test_names_that_others_rely_on(rundir):
    shown = {path.relative_to(rundir.path).as_posix() for path in (rundir.log(3), rundir.checkpoint("best", 12, 2))}
    assert shown == {"logs/rank3.log", "checkpoints/best-000000000012.a0002"}
    assert rundir.plan.name == "plan.json"
    assert rundir.metrics.name == "metrics.csv"


def test_without_a_folder_there_are_no_checkpoints(rundir):
    assert rundir.list_checkpoints("step") == []


@settings(max_examples=40)
@given(st.sets(st.tuples(st.integers(0, 10**11), st.integers(1, 9999)), max_size=8), st.randoms(use_true_random=False))
def test_checkpoints_are_listed_newest_first_by_step_then_attempt_whatever_their_age(tmp_path_factory, marks, random):
    rundir = RunDir(tmp_path_factory.mktemp("run"))
    shuffled = sorted(marks)
    random.shuffle(shuffled)
    for step, attempt in shuffled:
        rundir.checkpoint("step", step, attempt).mkdir(parents=True)
    expected = [rundir.checkpoint("step", *mark) for mark in sorted(marks, reverse=True)]
    assert rundir.list_checkpoints("step") == expected


def test_only_committed_checkpoints_of_the_asked_kind_are_listed(rundir):
    wanted = rundir.checkpoint("step", 3, 1)
    strangers = (".tmp-step-000000000004.a0001", "step-4.a0001", "step-000000000004.a0001.old", "notes", "LATEST")
    for path in (wanted, rundir.checkpoint("best", 9, 1), *(rundir.checkpoints / name for name in strangers)):
        path.mkdir(parents=True)
    assert rundir.list_checkpoints("step") == [wanted]


def test_a_second_process_is_refused_the_lock_in_words(rundir):
    with held_elsewhere(rundir), pytest.raises(UserError, match="another process is training it") as caught:
        rundir.lock().acquire()
    assert str(rundir.path) in str(caught.value)


def test_the_lock_is_free_again_after_its_holder_let_go_or_was_killed(rundir):
    with rundir.lock():
        pass
    with held_elsewhere(rundir) as other:
        other.kill()
        other.wait()
        with rundir.lock() as lock:
            assert lock.is_locked


def test_two_run_directories_do_not_lock_each_other(tmp_path):
    (tmp_path / "b").mkdir()
    with RunDir(tmp_path).lock(), RunDir(tmp_path / "b").lock() as lock:
        assert lock.is_locked


def test_a_file_that_is_not_there_reads_as_none(rundir):
    assert rundir.read(rundir.plan) is None
    assert rundir.state() is None


def test_status_is_replaced_and_gives_the_state(rundir):
    rundir.write_status(state="RUNNING", step=1)
    rundir.write_status(state="FAILED", step=2, reason="so")
    assert rundir.state() == "FAILED"
    assert rundir.read(rundir.status) == {"state": "FAILED", "step": 2, "reason": "so"}
    assert [path.name for path in rundir.path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("torn", [b"", b"[]", b"\0" * 64, b'{"state": "RUN'])
def test_a_torn_status_says_what_the_summary_says(rundir, torn):
    rundir.status.write_bytes(torn)
    assert rundir.read_status() == {} and rundir.state() is None
    rundir.give_up("so")
    assert rundir.read_status()["reason"] == "so"
    rundir.status.write_bytes(torn)
    assert rundir.state() == "FAILED"


def test_a_status_that_the_disk_does_not_give_is_an_error(rundir):
    rundir.status.mkdir()
    with pytest.raises(UserError, match=r"status\.json: cannot be read"):
        rundir.state()


def test_attempt_events_come_back_in_order_past_a_torn_one(rundir):
    assert rundir.attempt_events() == []
    rundir.add_attempt_event(event="start", attempt=1)
    with rundir.attempts.open("a") as file:
        file.write('{"event": "en')
    rundir.add_attempt_event(event="start", attempt=2)
    assert [event["attempt"] for event in rundir.attempt_events()] == [1, 2]
