"""A crew without a queue of files: real children that do as they are told instead of training."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from launcher.runtime.errors import ExitCode, InUse, UserError
from launcher.runtime.pack import crew as crew_module
from launcher.runtime.pack.child import Child
from launcher.runtime.pack.crew import Claim, Crew
from launcher.runtime.signals import StopFlag
from tests.launcher.runtime.pack.members import member_plan, note


class Members:
    """A source in memory."""

    def __init__(self, *claims):
        self.waiting, self.ended = list(claims), {}

    def claim(self, leave):
        return self.waiting.pop(0) if self.waiting else None

    def give_back(self, claim):
        self.waiting.append(claim)

    def end(self, claim, code):
        self.ended[claim.entry] = code

    def is_cancelled(self, claim):
        return False


@pytest.fixture
def work(tmp_path, monkeypatch, own_signals):
    """``work(source, run, beside=…)``: a crew to its end; returns its exit code."""
    monkeypatch.setattr(crew_module, "preload", lambda plan: None)

    def done(source, run, beside=1, began=lambda: None, stop=None, gpus=()):
        stop = StopFlag() if stop is None else stop
        crew = Crew(source, run, stop, job="w", restarts=0, beside=beside, gpus=gpus)
        return crew.work(began)

    return done


def claims(folder, count, **changes):
    return [Claim(f"{i:06d}", member_plan(folder, i, **changes)) for i in range(count)]


def test_members_on_gpus_have_one_each_by_the_place_that_is_free(tmp_path, work):
    gate, opened = os.pipe()

    def run(claim, stop, gpu):
        note(tmp_path / "seen", claim.entry, gpu)
        if claim.entry == "000000":  # until the third is there, in the place that the second has left
            os.read(gate, 1)
        if claim.entry == "000002":
            os.write(opened, b".")
        return 0

    source = Members(*claims(tmp_path, 3))
    assert work(source, run, beside=2, gpus=["3", "GPU-a"]) == 0
    seen = sorted((tmp_path / "seen").read_text().splitlines())
    assert seen == ['["000000", "3"]', '["000001", "GPU-a"]', '["000002", "GPU-a"]']
    assert source.ended == dict.fromkeys(["000000", "000001", "000002"], 0)


def test_a_member_that_cannot_be_preloaded_says_so_itself_and_others_run(tmp_path, monkeypatch, work):
    def refuse(plan):
        raise UserError("task.target=x:y: there is no module x")

    monkeypatch.setattr(crew_module, "preload", refuse)

    def run(claim, stop, gpu):
        if claim.entry == "000000":
            raise UserError("task.target=x:y: there is no module x")
        return 0

    source = Members(*claims(tmp_path, 2))
    assert work(source, run) == ExitCode.TRAINING_FAILED
    assert source.ended == {"000000": 1, "000001": 0}


def test_a_bug_of_ours_while_a_member_is_begun_gives_it_back(tmp_path, monkeypatch, work):
    def broken(plan):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(crew_module, "preload", broken)
    source = Members(*claims(tmp_path, 1))
    with pytest.raises(ZeroDivisionError):
        work(source, lambda claim, stop, gpu: 0)
    assert [claim.entry for claim in source.waiting] == ["000000"]


def test_a_stop_while_torch_is_imported_begins_nothing(tmp_path, monkeypatch, work):
    stop = StopFlag()
    stop.install()
    monkeypatch.setattr(crew_module, "preload", lambda plan: os.kill(os.getpid(), signal.SIGTERM))
    source = Members(*claims(tmp_path, 1))
    assert work(source, lambda claim, stop, gpu: 0, stop=stop) == ExitCode.STOPPED_SAVED
    assert [claim.entry for claim in source.waiting] == ["000000"] and source.ended == {}


def test_a_bug_of_ours_leaves_no_child_behind(tmp_path, monkeypatch, work):
    def broken(self):
        raise ZeroDivisionError("oh")

    pids = []

    class Noted(Child):
        def __init__(self, work):
            super().__init__(work)
            pids.append(self.pid)

    monkeypatch.setattr(Crew, "_look_after", broken)
    monkeypatch.setattr(crew_module, "Child", Noted)
    source = Members(*claims(tmp_path, 1))
    with pytest.raises(ZeroDivisionError):
        work(source, lambda claim, stop, gpu: signal.pause() or 0)
    assert [claim.entry for claim in source.waiting] == ["000000"]
    (pid,) = pids
    with pytest.raises(ChildProcessError):  # reaped: no other process of this one is asked for
        os.waitpid(pid, os.WNOHANG)


def test_a_completed_member_whose_process_was_killed_is_done(tmp_path, work):
    def run(claim, stop, gpu):
        claim.plan.rundir.path.mkdir(parents=True)
        claim.plan.rundir.write_status(state="COMPLETED")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    source = Members(*claims(tmp_path, 1))
    assert work(source, run) == 0 and source.ended == {"000000": 0}


def test_a_child_is_not_the_parent_in_what_it_leaves(tmp_path, work, capfd):
    """Its exit runs none of the parent's goodbyes and prints nothing twice."""
    print("from the parent", end="")

    def run(claim, stop, gpu):
        print("from the child", file=sys.stderr)
        return 0

    assert work(Members(*claims(tmp_path, 1)), run) == 0
    out, err = capfd.readouterr()
    assert (out, err.count("from the child")) == ("from the parent", 1)


class Taken(Members):
    """A member that another process trains; who gives it back sees another worker take it."""

    asked = 0

    def claim(self, leave):
        self.asked += 1
        assert self.asked < 20, "it waits for what another worker has"
        return super().claim(leave)

    def give_back(self, claim):
        self.taken = claim


def test_a_worker_does_not_wait_for_a_member_that_another_worker_has_taken(tmp_path, monkeypatch, work):
    monkeypatch.setattr(crew_module, "_BUSY_PAUSE_S", 0.0)
    monkeypatch.setattr(crew_module, "_LOOK_EVERY_S", 0.0)

    def in_use(claim, stop, gpu):
        raise InUse("another process is training it")

    source = Taken(*claims(tmp_path, 1))
    assert work(source, in_use) == 0
    assert source.taken.entry == "000000" and source.ended == {}


def test_what_is_completed_stays_so_where_it_is_cancelled_after_its_worker_died(tmp_path, work):
    class Cancelled(Members):
        def is_cancelled(self, claim):
            return True

    source = Cancelled(*claims(tmp_path, 2))
    done, waits = (claim.plan.rundir for claim in source.waiting)
    done.path.mkdir(parents=True)
    done.write_status(state="COMPLETED")
    assert work(source, lambda claim, stop, gpu: 0) == 0
    assert (done.state(), waits.state()) == ("COMPLETED", "CANCELLED") and len(source.ended) == 2


def test_a_member_whose_folder_cannot_be_written_touches_no_other(tmp_path, work, capfd):
    first, second = claims(tmp_path, 2)
    first.plan.rundir.status.mkdir(parents=True)  # in the place of a file
    source = Members(first, second)
    assert work(source, lambda claim, stop, gpu: int(claim is first)) == ExitCode.TRAINING_FAILED
    assert source.ended == {"000000": 1, "000001": 0}
    assert str(first.plan.rundir.status) in capfd.readouterr().err
