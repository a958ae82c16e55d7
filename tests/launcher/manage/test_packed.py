"""Status and cancelling of packed runs: a queue of files, and workers that a recorded Slurm knows."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import pytest

from launcher.__main__ import main
from launcher.manage.states import run_states
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.slurm_cli import Slurm
from tests.launcher.made_sweep import MadeSweep

RUNS = ("aaa1", "bbb2", "ccc3", "ddd4")
SCRIPT = "/w/t1.sh"


@pytest.fixture
def slurm(recorded_slurm):
    return recorded_slurm


class PackedSweep(MadeSweep):
    """Four runs that wait in a queue for the two workers of job 12."""

    def __init__(self, folder):
        super().__init__(folder)
        for run in RUNS:
            self.run(run)
        self.submitted(*RUNS, workers=2)
        self.queue = Queue(self.dir.queue("t1"))
        self.queue.fill(entry_name(i) for i in range(len(RUNS)))

    def claimed(self, run, worker, *, begun=True):
        """A worker runs it."""
        assert self.queue.claim(entry_name(RUNS.index(run)), worker)
        if begun:
            self.started(run, worker)
            self.status(run, "RUNNING")

    def given_back(self, run, worker, state="PREEMPTED"):
        self.status(run, state)
        assert self.queue.give_back(entry_name(RUNS.index(run)), worker)

    def ended(self, run, worker, state):
        if state is not None:
            self.status(run, state)
        assert self.queue.end(entry_name(RUNS.index(run)), worker)

    def states(self, slurm):
        return {s.run_id: s for s in run_states(self.dir, slurm and Slurm(slurm.env, patient=False))}


@pytest.fixture
def sweep(tmp_path):
    return PackedSweep(tmp_path / "runs" / "demo")


@pytest.mark.parametrize(
    ("workers", "state"),
    [
        ((("12_0", "PENDING"), ("12_1", "PENDING")), "SUBMITTED"),
        ((("12_0", "RUNNING"), ("12_1", "PENDING")), "SUBMITTED"),
        ((("12_1", "RUNNING"),), "SUBMITTED"),
        ((("12_0", "COMPLETED"), ("12_1", "PENDING")), "SUBMITTED"),
        ((("12_0", "COMPLETED"), ("12_1", "CANCELLED")), "PREEMPTED"),
        ((), "PREEMPTED"),
    ],
)
def test_what_waits_is_submitted_as_long_as_a_worker_may_take_it(sweep, slurm, workers, state):
    slurm.queue(*workers)
    found = sweep.states(slurm)["aaa1"]
    assert found.state == state
    if state == "PREEMPTED":
        assert found.reason == "none of its workers is left; the same command goes on"


@pytest.mark.parametrize(("workers", "state"), [((("12_1", "RUNNING"),), "REQUEUED"), ((), "PREEMPTED")])
def test_what_was_given_back_waits_to_go_on(sweep, slurm, workers, state):
    sweep.claimed("aaa1", "12_0")
    sweep.given_back("aaa1", "12_0")
    slurm.queue(*workers)
    assert sweep.states(slurm)["aaa1"].state == state
    assert sweep.states(slurm)["bbb2"].state == ("SUBMITTED" if workers else "PREEMPTED")


def test_one_row_says_which_worker_runs_it_and_what_ended_needs_no_slurm(sweep, slurm):
    sweep.claimed("aaa1", "12_0")
    sweep.claimed("bbb2", "12_1")
    sweep.ended("bbb2", "12_1", "FAILED")
    sweep.claimed("ccc3", "12_1")
    sweep.ended("ccc3", "12_1", "COMPLETED")
    sweep.claimed("ddd4", "12_1", begun=False)
    sweep.ended("ddd4", "12_1", None)
    slurm.queue(("12_0", "RUNNING"), nodes="n7")
    found = sweep.states(slurm)
    assert [(s.state, s.job_id) for s in found.values()] == [
        ("RUNNING", "12_0"), ("FAILED", "12_1"), ("COMPLETED", "12_1"), ("FAILED", "12"),
    ]  # fmt: skip
    assert found["aaa1"].node == "n7" and found["ddd4"].reason == "left its queue without a word"
    assert slurm.called("sacct") == []


@pytest.mark.parametrize(("slurms", "state"), [("RUNNING", "RUNNING"), ("PENDING", "REQUEUED")])
def test_a_claimed_run_is_where_its_worker_is(sweep, slurm, slurms, state):
    sweep.claimed("aaa1", "12_0")
    slurm.queue(("12_0", slurms))
    assert sweep.states(slurm)["aaa1"].state == state


@pytest.mark.parametrize(("others", "state"), [((("12_1", "RUNNING"),), "REQUEUED"), ((), "FAILED")])
def test_what_a_lost_worker_had_is_the_others_and_lost_with_the_last(sweep, slurm, others, state):
    sweep.claimed("aaa1", "12_0")
    sweep.status("aaa1", "RUNNING", age_s=100)
    slurm.queue(*others)
    assert sweep.states(slurm)["aaa1"].state == state


@pytest.mark.parametrize(("age_s", "state"), [(0, "RUNNING"), (100, "SUBMITTED")])
def test_a_worker_that_was_started_by_hand_is_no_job_of_slurms(sweep, slurm, age_s, state):
    sweep.claimed("aaa1", "n1.example.org.4711")
    sweep.status("aaa1", "RUNNING", age_s=age_s)
    slurm.queue(("12_1", "RUNNING"))
    assert sweep.states(slurm)["aaa1"].state == state
    assert not any("4711" in call or "n1" in call for call in slurm.called("sacct"))


def test_a_run_that_was_left_to_a_process_which_is_gone_goes_on_with_the_same_command(sweep, slurm):
    sweep.claimed("aaa1", "12_0")
    sweep.ended("aaa1", "12_0", "RUNNING")
    assert sweep.states(slurm)["aaa1"].is_active
    sweep.status("aaa1", "RUNNING", age_s=100)
    found = sweep.states(slurm)["aaa1"]
    assert found.state == "STALLED" and found.is_over and not found.is_active
    with sweep.dir.run("aaa1").lock():
        assert sweep.states(slurm)["aaa1"].is_active


def test_runs_whose_queue_was_removed_can_be_cancelled(sweep, slurm):
    sweep.claimed("aaa1", "12_0")
    shutil.rmtree(sweep.queue.path)
    slurm.queue(("12_0", "RUNNING"))
    assert main(["cancel", "aaa1", "bbb2", "--grace", "0"]) == 0


def test_without_slurm_what_waits_is_submitted(sweep):
    assert {s.state for s in sweep.states(None).values()} == {"SUBMITTED"}


def test_cancelling_some_leaves_the_workers_to_the_others(sweep, slurm, capsys):
    sweep.claimed("aaa1", "12_0")
    slurm.queue(("12_0", "RUNNING"), ("12_1", "PENDING"))
    assert main(["cancel", "aaa1", "bbb2", "--grace", "0"]) == 0
    assert slurm.called("scancel") == [] and "cancelled 2 packed runs" in capsys.readouterr().out
    assert sweep.queue.cancellation("000000").exists(), "its worker is to stop it"
    assert sweep.queue.list_ended() == ["000001"] and sweep.dir.run("bbb2").state() == "CANCELLED"
    assert sweep.queue.list_waiting() == ["000002", "000003"]
    assert {r: s.state for r, s in sweep.states(slurm).items()} == {
        "aaa1": "RUNNING", "bbb2": "CANCELLED", "ccc3": "SUBMITTED", "ddd4": "SUBMITTED",
    }  # fmt: skip


@pytest.mark.parametrize("forgotten", [False, True], ids=["in the books", "forgotten"])
@pytest.mark.parametrize("words", [("runs/demo",), RUNS], ids=["sweep", "each run"])
def test_cancelling_all_stops_the_workers_too(sweep, slurm, words, forgotten):
    sweep.claimed("aaa1", "12_0")
    slurm.queue(("12_0", "RUNNING"), ("12_1", "PENDING"))
    assert main(["cancel", *words, "--grace", "0"]) == 0
    assert [call.split()[-1] for call in slurm.called("scancel")] == ["12_[0-1]"]
    assert sweep.dir.read_cancelled("t1") >= {"12_0", "12_1"}
    assert not sweep.queue.list_waiting()
    slurm.history(*(() if forgotten else (("12_0", "CANCELLED"), ("12_1", "CANCELLED"))))
    slurm.queue()
    assert {s.state for s in sweep.states(slurm).values()} == {"CANCELLED"}


def test_cancelling_the_last_ones_that_are_left_stops_the_workers(sweep, slurm):
    with ExitStack() as alive:
        alive.enter_context(sweep.queue.joined("12_0"))
        for run in RUNS[:3]:
            sweep.claimed(run, "12_0")
            sweep.ended(run, "12_0", "COMPLETED")
        slurm.queue(("12_0", "RUNNING"), ("12_1", "RUNNING"))
        assert main(["cancel", "ddd4", "--grace", "0"]) == 0
    assert len(slurm.called("scancel")) == 1 and sweep.dir.run("ddd4").state() == "CANCELLED"


def test_a_dry_run_changes_nothing(sweep, slurm, capsys):
    slurm.queue(("12_0", "RUNNING"), ("12_1", "PENDING"))
    assert main(["cancel", "runs/demo", "--dry-run"]) == 0
    assert "would cancel 4 packed runs" in capsys.readouterr().out
    assert sweep.queue.list_waiting() == [entry_name(i) for i in range(4)] and not slurm.called("scancel")


def test_successors_of_workers_are_workers(sweep, slurm):
    sweep.submitted(*RUNS, workers=2, job="13", token="t2", follows="t1")
    sweep.claimed("aaa1", "12_0")
    slurm.queue(("12_0", "PREEMPTED"), ("12_1", "FAILED"), ("13_0", "PENDING"), ("13_1", "PENDING"), script="/w/t2.sh")
    found = sweep.states(slurm)
    assert [found[run].state for run in RUNS] == ["REQUEUED", "SUBMITTED", "SUBMITTED", "SUBMITTED"]
    sweep.given_back("aaa1", "12_0")
    assert sweep.states(slurm)["aaa1"].state == "REQUEUED"
    assert sweep.queue.claim(entry_name(0), "13_1")
    sweep.started("aaa1", "13_1")
    sweep.status("aaa1", "RUNNING")
    slurm.queue(("13_1", "RUNNING"), script="/w/t2.sh")
    assert (sweep.states(slurm)["aaa1"].state, sweep.states(slurm)["bbb2"].state) == ("RUNNING", "SUBMITTED")
    assert main(["cancel", *RUNS, "--grace", "0"]) == 0
    assert [call.split()[2:] for call in slurm.called("scancel")] == [["12_[0-1]", "13_[0-1]"]]
