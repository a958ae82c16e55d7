"""The lease: one attempt holds a run, and Slurm's newest start of a job goes before what it gave up for lost."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager

import pytest

from launcher.runtime import lease
from launcher.runtime.errors import ExitCode, Stopped, UserError
from launcher.runtime.files import write_json
from launcher.runtime.lease import Lease, Superseded, next_attempt, take
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from tests.conftest import REPOSITORY

HOLD = """
import json, sys
from contextlib import ExitStack
from pathlib import Path
from launcher.runtime.lease import take
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
with ExitStack() as stack:
    held = take(RunDir(Path(sys.argv[1])), World(**json.loads(sys.argv[2])), StopFlag(), stack)(int(sys.argv[3]))
    print("held", flush=True)
    for _ in sys.stdin:
        print(held.lost_to(), flush=True)
"""


def in_job(restarts=0, job="17"):
    return World(source="slurm", job_id=job, restarts=restarts, host="here")


@contextmanager
def holder(rundir, world, attempt=1):
    """A real process that has taken the run; a line to its stdin asks whether it still holds it."""
    import dataclasses
    import json

    words = [sys.executable, "-c", HOLD, str(rundir.path), json.dumps(dataclasses.asdict(world)), str(attempt)]
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def asked(process):
    process.stdin.write("?\n")
    return process.stdout.readline().strip()


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "FENCE_S", 0.3)
    monkeypatch.setattr(lease, "_POLL_S", 0.01)


def test_who_takes_a_free_run_holds_it_until_another_does(rundir):
    with ExitStack() as stack:
        mine = take(rundir, in_job(), StopFlag(), stack)(1)
        assert mine.lost_to() is None
        mine.require()
    with ExitStack() as stack:
        theirs = take(rundir, in_job(1), StopFlag(), stack)(2)
        assert theirs.lost_to() is None
        with pytest.raises(Superseded, match=r"^attempt 2 on here has taken the run over$") as caught:
            mine.require()
    assert caught.value.code == ExitCode.STOPPED_NOT_SAVED


def test_a_second_process_is_refused_and_told_who_holds_the_run(rundir):
    with holder(rundir, in_job(job="16")) as process, ExitStack() as stack:
        words = rf"another process is training it.* \(attempt 1 on here, process {process.pid}, job 16\)$"
        with pytest.raises(UserError, match=words):
            take(rundir, in_job(job="17"), StopFlag(), stack)
        with pytest.raises(UserError, match="another process is training it"):
            take(rundir, World(), StopFlag(), stack)
        with pytest.raises(UserError, match="another process is training it"):
            take(rundir, in_job(job="16"), StopFlag(), stack)  # no later start of it
        assert asked(process) == "None"


def test_a_requeued_start_goes_before_an_earlier_start_that_lives_on(rundir):
    with holder(rundir, in_job(0)) as old, ExitStack() as stack:
        mine = take(rundir, in_job(1), StopFlag(), stack)(2)
        assert asked(old) == "attempt 2 on here has taken the run over"
        assert mine.lost_to() is None
        with ExitStack() as other, pytest.raises(UserError, match="another process is training it"):
            take(rundir, in_job(job="99"), StopFlag(), other)  # the new one's lock holds
        old.kill()
        old.wait()
        assert mine.lost_to() is None and rundir.is_locked()


def test_the_new_start_goes_on_as_soon_as_the_old_one_is_gone(rundir, monkeypatch):
    monkeypatch.setattr(lease, "FENCE_S", 600.0)
    with holder(rundir, in_job(0)) as old, ExitStack() as stack:
        taking = take(rundir, in_job(1), StopFlag(), stack)
        done = threading.Event()
        thread = threading.Thread(target=lambda: (taking(2), done.set()))
        thread.start()
        while asked(old) == "None":
            pass
        assert not done.is_set()
        os.kill(old.pid, signal.SIGKILL)
        assert done.wait(60)
        thread.join()


def test_an_earlier_start_does_not_go_before_a_later_one(rundir):
    with holder(rundir, in_job(2)), ExitStack() as stack, pytest.raises(UserError, match="another process"):
        take(rundir, in_job(1), StopFlag(), stack)


def test_after_a_dead_holder_of_this_machine_there_is_no_wait(rundir, monkeypatch):
    with holder(rundir, in_job(0)) as old:
        old.kill()
        old.wait()
        monkeypatch.setattr(lease, "_wait_for_its_end", lambda *_: pytest.fail("it waited"))
        monkeypatch.setattr(lease, "_moves", lambda rundir: pytest.fail("it waited"))
        with ExitStack() as stack:
            assert take(rundir, in_job(job="18"), StopFlag(), stack)(2).lost_to() is None


def elsewhere(rundir, attempt=1, **more):
    """A holder on a machine whose locks are not seen here."""
    record = {"token": "theirs", "attempt": attempt, "host": "there", "pid": 7, "boot": "another", "job_id": "5"}
    write_json(rundir.lease, record | more)


@contextmanager
def beating(rundir):
    """A heartbeat that moves."""
    over = threading.Event()

    def beat():
        count = 0
        while not over.wait(0.02):
            count += 1
            rundir.write_status(state="RUNNING", heartbeat=count)

    rundir.write_status(state="RUNNING", heartbeat=0)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_holder_elsewhere_that_moves_is_left_alone(rundir, monkeypatch):
    monkeypatch.setattr(lease, "FENCE_S", 60.0)
    elsewhere(rundir)
    with beating(rundir), ExitStack() as stack:
        words = r"another process is training it \(attempt 1 on there, process 7, job 5\); wait for it or stop it$"
        with pytest.raises(UserError, match=words):
            take(rundir, in_job(), StopFlag(), stack)
    assert rundir.read(rundir.lease)["token"] == "theirs"


@pytest.mark.parametrize("status", [True, False])
def test_a_holder_elsewhere_that_stands_still_is_followed(rundir, status):
    elsewhere(rundir)
    if status:
        rundir.write_status(state="RUNNING", heartbeat=1)
    with ExitStack() as stack:
        assert take(rundir, in_job(), StopFlag(), stack)(2).lost_to() is None
    assert Lease(rundir.lease, "theirs").lost_to() == "attempt 2 on here has taken the run over"


def test_a_requeued_start_goes_before_an_earlier_one_elsewhere_that_moves_and_gives_it_time_to_end(rundir, monkeypatch):
    elsewhere(rundir, job_id="17", restarts=0)
    waited = []
    monkeypatch.setattr(lease, "_wait_for_its_end", lambda left, stop: waited.append(left))
    with beating(rundir), ExitStack() as stack:
        take(rundir, in_job(1), StopFlag(), stack)(2)
    assert waited == [-1]


def test_a_holder_elsewhere_that_said_that_it_ended_needs_no_wait(rundir, monkeypatch):
    elsewhere(rundir, attempt=3)
    rundir.add_attempt_event(event="end", attempt=3)
    monkeypatch.setattr(lease, "_wait_for_its_end", lambda *_: pytest.fail("it waited"))
    monkeypatch.setattr(lease, "_moves", lambda rundir: pytest.fail("it waited"))
    with ExitStack() as stack:
        assert take(rundir, in_job(), StopFlag(), stack)(4).lost_to() is None


@pytest.mark.parametrize("text", ["", "{torn", "[]", "{}"])
def test_a_lease_that_cannot_be_read_stops_nobody(rundir, text):
    rundir.lease.write_text(text)
    with ExitStack() as stack:
        assert take(rundir, in_job(), StopFlag(), stack)(1).lost_to() is None
    rundir.lease.unlink()
    assert Lease(rundir.lease, "mine").lost_to() is None


def test_no_two_attempts_have_one_number(rundir):
    assert next_attempt(rundir) == 1
    rundir.add_attempt_event(event="start", attempt=1)
    assert next_attempt(rundir) == 2
    elsewhere(rundir, attempt=2)  # it took the run, and died before it said that it starts
    assert next_attempt(rundir) == 3
    rundir.add_attempt_event(event="start", attempt=7)
    rundir.lease.write_text("{torn")
    assert next_attempt(rundir) == 8


def test_a_stop_ends_the_wait_for_an_earlier_holder(rundir):
    elsewhere = {"token": "x", "attempt": 1, "job_id": "9", "host": "n9", "boot": "another machine", "pid": 1}
    write_json(rundir.lease, elsewhere)
    stop = StopFlag()
    stop.signal = signal.SIGTERM
    with ExitStack() as stack, pytest.raises(Stopped):
        take(rundir, World(), stop, stack)


def test_who_only_asks_whether_a_run_is_locked_keeps_nobody_out(rundir):
    asked = os.open(rundir.lock_file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(asked, fcntl.LOCK_EX)
    later = threading.Timer(0.2, os.close, (asked,))
    later.start()
    with ExitStack() as stack:
        assert take(rundir, World(), StopFlag(), stack)(1).lost_to() is None
    later.join()
