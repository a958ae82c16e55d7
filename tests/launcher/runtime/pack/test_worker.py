"""A worker of packed members, through its door: real processes, real signals, and every way a member ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.launcher.runtime.pack.members import until
from tests.launcher.runtime.test_rundir import held_elsewhere


def test_all_members_are_completed_once_by_children_of_one_process(bench):
    bench.submit(*["end"] * 4)
    worker = bench.start()
    assert bench.end(worker)[0] == 0
    assert bench.states() == ["COMPLETED"] * 4 and bench.finished() == [0, 1, 2, 3]
    assert {parent for _, _, parent, _ in bench.lines("processes")} == {worker.pid}
    assert bench.queue.list_ended() == [f"{i:06d}" for i in range(4)] and not bench.queue.claims()
    assert all(bench.events(i, "start")[0]["job_id"] == "w1" for i in range(4))


def test_no_member_that_ends_badly_touches_another(bench):
    bench.submit(
        "end", "diverge", {"do": "raise", "requeue": {"max_without_progress": 1}}, "refuse", "kill-once",
        {"do": "kill", "requeue": {"max_without_progress": 2}, "at": 2}, "end",
    )  # fmt: skip
    code, said = bench.end(bench.start())
    assert code == 3, said
    assert bench.states() == ["COMPLETED", "FAILED", "FAILED", "FAILED", "COMPLETED", "FAILED", "COMPLETED"]
    assert bench.finished() == [0, 4, 6]
    assert "loss is nan" in bench.reason(1) and "no such file" in bench.reason(3)
    assert "made no progress" in bench.reason(2)
    assert [event["step"] for event in bench.events(4, "start")] == [0, 2], "goes on from its checkpoint"
    assert "2 attempts in a row made no progress (last: a rank was killed (SIGKILL))" in bench.reason(5)
    assert len(bench.events(1, "start")) == len(bench.events(3, "start")) == 1, "what no second try would change"
    assert not bench.queue.list_waiting() and not bench.queue.claims()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("whole_group", [False, True], ids=["worker", "whole group"])
def test_a_worker_that_is_stopped_gives_its_member_back_and_no_step_is_redone(bench, number, whole_group):
    """Slurm signals all processes of a step, the members too."""
    bench.submit({"do": "hold", "steps": 6}, "end")
    worker = bench.start()
    bench.wait_holding(0)
    os.killpg(worker.pid, number) if whole_group else worker.send_signal(number)
    assert bench.end(worker)[0] == 75
    assert bench.queue.list_waiting() == ["000000", "000001"] and bench.states() == ["PREEMPTED", None]
    bench.go()
    assert bench.end(bench.start(job="w2"))[0] == 0
    assert bench.states() == ["COMPLETED"] * 2 and bench.finished() == [0, 1]
    assert bench.steps(0) == dict.fromkeys(range(1, 7), 1)


def test_where_a_worker_is_killed_its_member_saves_and_another_worker_takes_it(bench):
    bench.submit({"do": "hold", "steps": 6}, *["end"] * 3)
    worker = bench.start()
    bench.wait_holding(0)
    worker.kill()
    other = bench.start(job="w2")
    bench.go()
    assert bench.end(other)[0] == 0
    until(lambda: not bench.plans[0].rundir.is_locked())
    if bench.queue.claims():  # the other was done before the orphan had saved
        assert bench.end(bench.start(restarts=1))[0] == 0
    assert bench.states() == ["COMPLETED"] * 4 and bench.finished() == [0, 1, 2, 3]
    assert bench.steps(0) == dict.fromkeys(range(1, 7), 1)


def test_a_second_ctrl_c_kills_and_nothing_is_lost(bench):
    """The member is deaf: stopped by SIGSTOP, it never saves."""
    bench.submit({"do": "hold", "steps": 6}, "end")
    worker = bench.start()
    bench.wait_holding(0)
    os.kill(bench.process(0)[0], signal.SIGSTOP)
    worker.send_signal(signal.SIGINT)
    until(lambda: pending(bench.process(0)[0], signal.SIGTERM))
    worker.send_signal(signal.SIGINT)
    code, said = bench.end(worker)
    assert code == 76 and said.splitlines()[-1] == "interrupted"
    assert bench.queue.list_waiting() == ["000000", "000001"] and not bench.plans[0].rundir.is_locked()
    bench.go()
    assert bench.end(bench.start(restarts=1))[0] == 0 and bench.finished() == [0, 1]


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has yet to take a signal (proc(5), ShdPnd)."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return bool(int(fields["ShdPnd"], 16) & 1 << (number - 1))


def test_signals_at_any_moment_are_not_lost(bench):
    """Each is sent as soon as a member is about to be forked: before and after it has handlers of its own."""
    bench.submit(*[{"do": "hold", "at": 1}] * 3)
    worker = bench.start()
    until(lambda: bench.queue.claims())
    while worker.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGUSR2)
        time.sleep(0.002)
    assert worker.returncode in (75, 76), bench.end(worker)
    assert len(bench.queue.list_waiting()) == 3 and not bench.queue.claims()


def test_members_beside_each_other_run_at_once_and_share_the_cores(bench):
    bench.submit("meet", "meet", "end")
    code, said = bench.end(bench.start("--beside", "2", "--cpus", "6"))
    assert code == 0, said
    assert bench.finished() == [0, 1, 2]
    assert {threads for *_, threads in bench.lines("processes")} == {"3"}


def test_what_is_cancelled_is_not_run_again_nor_begun(bench):
    bench.submit("hold", "hold", "end")
    bench.queue.cancellation("000001").touch()
    worker = bench.start()
    bench.wait_holding(0)
    bench.queue.cancellation("000000").touch()
    code, said = bench.end(worker)
    assert code == 0, said
    assert bench.states() == ["CANCELLED", "CANCELLED", "COMPLETED"]
    assert bench.events(1, "start") == [] and len(bench.events(0, "start")) == 1
    assert bench.events(0, "end")[0]["code"] == 75, "it has saved"
    assert bench.queue.list_ended() == ["000000", "000001", "000002"]


def test_a_run_that_another_process_trains_is_put_off_and_run_once_it_is_free(bench):
    bench.submit("end", "end")
    bench.plans[0].rundir.path.mkdir(parents=True)
    with held_elsewhere(bench.plans[0].rundir):
        worker = bench.start()
        until(lambda: bench.finished() == [1])
        assert bench.states()[0] is None
    assert bench.end(worker)[0] == 0
    assert bench.states() == ["COMPLETED"] * 2 and bench.finished() == [0, 1]


def test_a_damaged_line_is_told_and_the_others_run(bench):
    bench.submit("end", "end")
    lines = bench.file.read_text().splitlines()
    bench.file.write_text("\n".join([lines[0][:50], lines[1], ""]))
    code, said = bench.end(bench.start())
    assert code == 3 and "line 1 holds no plan: it is damaged" in said and "Traceback" not in said
    assert bench.finished() == [1] and bench.queue.list_ended() == ["000000", "000001"]


def test_an_entry_that_has_no_plan_is_told_and_the_others_run(bench):
    bench.submit("end")
    bench.queue.fill(["000001", "000007"])
    (bench.queue.waiting / "000000~").touch()
    code, said = bench.end(bench.start())
    assert code == 3 and said.count("holds no plan") == 2 and "Traceback" not in said
    assert bench.finished() == [0] and bench.queue.list_ended() == ["000000", "000001", "000007"]


@pytest.mark.parametrize("how", ["withdrawn", "cancelled"])
def test_a_worker_of_a_submission_that_was_given_up_does_nothing(bench, how):
    bench.submit("end")
    if how == "withdrawn":
        bench.sweep.withdrawal("t1").touch()
    else:
        bench.sweep.add_event("cancelled", "t1", jobs=["16_0"])
    element = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "0"}
    code, said = bench.end(bench.start("--submission", "t1", job=None, **element))
    assert code == 1 and how in said and said.count("\n") == 1
    assert bench.queue.list_waiting() == ["000000"] and bench.states() == [None]


def test_a_worker_started_by_hand_helps_the_others(bench):
    bench.submit("hold", "end")
    first = bench.start()
    bench.wait_holding(0)
    by_hand = bench.start(job=None)
    assert bench.end(by_hand)[0] == 0 and bench.finished() == [1]
    assert bench.events(1, "start")[0]["job_id"] == f"{socket.gethostname()}.{by_hand.pid}"
    bench.go()
    assert bench.end(first)[0] == 0 and bench.finished() == [0, 1]


def test_several_started_by_hand_in_one_step_of_slurm_have_names_of_their_own(bench):
    """``srun -n 2 python -m launcher.runtime.pack.worker PLANS`` in an allocation."""
    bench.submit("meet", "meet")
    place = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    workers = [bench.start(job=None, **place, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in ("0", "1")]
    assert [bench.end(worker)[0] for worker in workers] == [0, 0]
    names = {bench.events(number, "start")[0]["job_id"] for number in (0, 1)}
    assert names == {f"{socket.gethostname()}.{worker.pid}" for worker in workers}


def test_on_an_empty_queue_a_worker_ends_without_importing_torch(bench):
    bench.submit("end")
    bench.queue.end("000000", None)
    code, said = bench.end(bench.start(PYTHONPROFILEIMPORTTIME="1"))
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert code == 0 and "argparse" in imported and not imported & {"torch", "numpy", "pandas"}


def test_what_one_member_had_to_import_the_next_one_finds(bench):
    bench.submit("import", "import")
    assert bench.end(bench.start())[0] == 0
    assert [known for _, known, _ in bench.lines("imports")] == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--beside", "0"), "--beside 0: should be at least 1"), ((), "No such file or directory; submit the sweep")],
)
def test_what_cannot_be_is_told_in_one_line(bench, options, said):
    bench.submit("end")
    if not options:
        shutil.rmtree(bench.queue.path)
    code, words = bench.end(bench.start(*options))
    assert code == 1 and said in words and words.count("\n") == 1
