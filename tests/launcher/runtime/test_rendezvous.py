"""How ranks meet: over a file of their own start, past what other starts left, and never with another job."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.runtime.errors import ExitCode, Stopped, UserError
from launcher.runtime.files import write_json
from launcher.runtime.rendezvous import Refused, Verdict, announce, attend, forget
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World


def world(rank=0, incarnation="1.r0.s0", size=2):
    return World(rank=rank, size=size, source="slurm", incarnation=incarnation, host="here")


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


@pytest.fixture
def others():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_ranks_meet_in_a_store_and_know_the_attempt(rundir, others):
    waiting = [others.submit(attend, world(rank, size=3), rundir, StopFlag(), 15) for rank in (1, 2)]
    main = announce(world(size=3), rundir, Verdict(attempt=4), None)
    main.store.set("word", "hello")
    for meeting in (found.result(30) for found in waiting):
        assert (meeting.verdict.attempt, meeting.address) == (4, "127.0.0.1")
        assert meeting.store.get("word") == b"hello"


def test_two_starts_of_one_run_never_meet(rundir, others):
    names = ["1.r0.s0", "1.r1.s0"]
    waiting = [others.submit(attend, world(1, name), rundir, StopFlag(), 15) for name in names]
    stores = [announce(world(0, name), rundir, Verdict(attempt=i), None).store for i, name in enumerate(names)]
    for i, meeting in enumerate(found.result(30) for found in waiting):
        stores[i].set("mine", names[i])
        assert meeting.verdict.attempt == i and meeting.store.get("mine").decode() == names[i]


@pytest.mark.parametrize("stale", ["nobody", "another job", "torn", "nothing"])
def test_what_an_earlier_start_of_the_same_name_left_misleads_nobody(rundir, others, stale):
    elsewhere = announce(world(), RunDir(rundir.path / "other"), Verdict(attempt=9), None)
    left = json.loads(RunDir(rundir.path / "other").rendezvous("1.r0.s0").read_text())
    file = rundir.rendezvous("1.r0.s0")
    file.parent.mkdir(parents=True)
    if stale == "torn":
        file.write_text('{"attempt": 1')
    elif stale != "nothing":
        write_json(file, left | {"nonce": "old"} | ({"port": 1} if stale == "nobody" else {}))
    waiting = others.submit(attend, world(1), rundir, StopFlag(), 15)
    with pytest.raises(TimeoutError):
        waiting.result(0.3)
    main = announce(world(), rundir, Verdict(attempt=2), None)
    main.store.set("word", "hello")
    assert waiting.result(30).store.get("word") == b"hello"
    assert elsewhere.store is not None  # it lived through this


def test_a_refusal_is_heard_with_its_code(rundir, others):
    waiting = others.submit(attend, world(1), rundir, StopFlag(), 15)
    announce(world(), rundir, Verdict(code=3, message="it is so"), None)
    verdict = waiting.result(30).verdict
    refused = Refused(verdict.message, ExitCode(verdict.code))
    assert str(refused) == "it is so" and refused.code == 3


def test_a_rank_that_hears_nothing_says_what_to_look_at(rundir):
    with pytest.raises(UserError, match=r"^rank 1 on here: rank 0 left no .*rendezvous\.json for 0\.2 s; see rank 0's"):
        attend(world(1), rundir, StopFlag(), timeout_s=0.2)
    write_json_at = rundir.rendezvous("1.r0.s0")
    write_json_at.parent.mkdir(parents=True)
    record = {"attempt": 1, "code": None, "message": "", "address": "127.0.0.1", "port": 1, "nonce": "x"}
    write_json(write_json_at, record)
    with pytest.raises(UserError, match=r"rank 0 does not answer at 127\.0\.0\.1:1 .*site\.interface"):
        attend(world(1), rundir, StopFlag(), timeout_s=0.2)


def test_rank_0_forgets_an_earlier_start_of_its_name_only(rundir):
    for name in ("1.r0.s0", "2.r0.s0"):
        for file in (rundir.rendezvous(name), rundir.failure(name, 1)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    forget(world(), rundir)
    assert not rundir.rendezvous("1.r0.s0").exists() and rundir.failures("1.r0.s0") == []
    assert rundir.rendezvous("2.r0.s0").exists() and len(rundir.failures("2.r0.s0")) == 1


def test_a_world_of_one_leaves_nothing(rundir):
    assert announce(World(), rundir, Verdict(attempt=1), None).store is None
    assert list(rundir.path.iterdir()) == []


def test_a_rank_that_is_asked_to_stop_waits_no_longer(rundir, raised):
    stop = StopFlag()
    raised(stop)
    with pytest.raises(Stopped, match="before there was anything to save") as caught:
        attend(world(1), rundir, stop)
    assert caught.value.code == ExitCode.STOPPED_NOT_SAVED
