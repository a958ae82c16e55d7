"""The job's door: several real ranks, as a local queue and as Slurm would start them, and every way they end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.runtime.errors import UserError
from launcher.runtime.failures import first_failure
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.worker import read_plan
from tests.conftest import REPOSITORY
from tests.launcher.runtime.ranks import ends, queue_env, slurm_env, start, toy_plan, write_plans
from tests.launcher.runtime.test_rundir import held_elsewhere


def sums(plan, size=2):
    """Step and weights' hash that each rank ended with."""
    return [(plan.rundir.path / f"sum{rank}").read_text() for rank in range(size)]


def test_two_ranks_of_a_local_queue_train_one_run_and_a_second_start_does_nothing(tmp_path):
    plan = toy_plan(tmp_path)
    plans = write_plans(tmp_path, plan)
    first = ends(*(start(plans, queue_env(rank, 2)) for rank in range(2)))
    assert first == [(0, "", "")] * 2
    assert plan.rundir.state() == "COMPLETED" and len(set(sums(plan))) == 1
    begun = plan.rundir.attempt_events()[0]
    assert (begun["event"], begun["job_id"], begun["incarnation"], len(begun["hosts"])) == ("start", "q1", "q1", 1)
    assert plan.rundir.log(0).exists() and plan.rundir.log(1).exists()
    again = ends(*(start(plans, queue_env(rank, 2, job="q2")) for rank in range(2)))
    assert again == [(0, "", "")] * 2
    assert len(plan.rundir.attempt_events()) == 2


def test_ranks_on_two_nodes_of_an_array_element_and_two_jobs_at_once(tmp_path):
    plans = [toy_plan(tmp_path, nodes=2, tasks_per_node=1, steps=steps) for steps in (3, 4)]
    file = write_plans(tmp_path, *plans)
    array = [
        {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": str(e), "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
        for e in (0, 1)
    ]
    workers = [start(file, slurm_env(rank, 2, 2, str(16 + e), **array[e])) for e in (0, 1) for rank in (0, 1)]
    assert [code for code, _, _ in ends(*workers)] == [0] * 4
    for element, plan in enumerate(plans):
        assert len(set(sums(plan))) == 1 and plan.rundir.state() == "COMPLETED"
        begun = plan.rundir.attempt_events()[0]
        assert (begun["job_id"], begun["incarnation"]) == (f"16_{element}", f"16_{element}.r0.s0")
    ports = {json.loads(p.rundir.rendezvous(f"16_{e}.r0.s0").read_text())["port"] for e, p in enumerate(plans)}
    assert len(ports) == 2


@pytest.mark.parametrize(("end", "codes"), [("raise", [70, 70]), ("kill", [76, -signal.SIGKILL])])
def test_a_rank_that_fails_ends_the_others_in_seconds(tmp_path, end, codes):
    plan = toy_plan(tmp_path, end=end, steps=1000)
    workers = [start(write_plans(tmp_path, plan), queue_env(rank, 2)) for rank in range(2)]
    found = ends(*workers, timeout_s=30)
    assert [code for code, _, _ in found] == codes
    status = json.loads(plan.rundir.status.read_text())
    first = first_failure(plan.rundir, "q1")
    # A rank that was killed is nobody's mistake: whoever watches over the job starts it again.
    assert status["state"] == ("FAILED" if end == "raise" else "PREEMPTED") and "bug" not in found[0][2]
    if end == "raise":
        assert (first["rank"], first["kind"], first["message"], first["code"]) == (1, "ZeroDivisionError", "oh", 70)
        assert "failed first: ZeroDivisionError: oh" in status["reason"] and "rank 1" in found[0][2]
    else:
        assert (first["rank"], first["kind"], first["after_another"]) == (0, "PeerLost", True)
        assert "lost another rank" in status["reason"]


def test_where_rank_0_refuses_the_others_end_at_once_with_its_code_and_words(tmp_path):
    plan = toy_plan(tmp_path)
    plan.rundir.path.mkdir(parents=True)
    with held_elsewhere(plan.rundir):
        found = ends(*(start(write_plans(tmp_path, plan), queue_env(r, 2)) for r in range(2)), timeout_s=30)
    assert [code for code, _, _ in found] == [1, 1]
    assert all("another process is training it" in stderr and stderr.count("\n") == 1 for _, _, stderr in found)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    plan = toy_plan(tmp_path, end="stop", steps=1000)
    found = ends(*(start(write_plans(tmp_path, plan), queue_env(rank, 2)) for rank in range(2)))
    assert [code for code, _, _ in found] == [75, 75]
    assert len(set(sums(plan))) == 1 and plan.rundir.state() == "PREEMPTED"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_while_python_ends_does_not_change_the_exit_code(tmp_path, number):
    plans = write_plans(tmp_path, toy_plan(tmp_path, tasks_per_node=1))
    late = f"""if True:
        import os, sys
        from launcher.runtime.worker import main
        class Late:
            def __del__(self, kill=os.kill, pid=os.getpid()):
                kill(pid, {int(number)})
        late = Late()  # goes after the interpreter has let go of its signal handlers
        sys.exit(main())"""
    env = os.environ | slurm_env(0, 1) | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", late, str(plans)], env=env, timeout=60).returncode == 0


def test_a_job_that_slurm_stopped_ends_once_it_has_saved(tmp_path):
    plan = toy_plan(tmp_path, tasks_per_node=1, end="stop", victim=0)
    assert [code for code, _, _ in ends(start(write_plans(tmp_path, plan), slurm_env(0, 1)))] == [75]
    assert plan.rundir.state() == "PREEMPTED"


def test_a_cancelled_job_that_slurm_brings_back_ends_at_once(tmp_path):
    plan = toy_plan(tmp_path, tasks_per_node=1)
    plans = write_plans(tmp_path, plan)
    sweep = SweepDir(plan.rundir.path.parent)
    plan.rundir.path.mkdir(parents=True)
    plan.rundir.write_status(state="REQUEUED", step=4)
    sweep.add_event("cancelled", "t1", jobs=["16_0"])
    element = {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "0"}
    ((code, _, said),) = ends(start(plans, slurm_env(0, 1, **element), "--submission", "t1"))
    assert code == 1 and "job 16_0 was cancelled" in said and said.count("\n") == 1
    assert plan.rundir.attempt_events() == [] and plan.rundir.read(plan.rundir.status)["step"] == 4
    assert plan.rundir.state() == "CANCELLED"
    ((code, _, _),) = ends(start(plans, slurm_env(0, 1, **element), "--submission", "t2"))
    assert code == 0, "the number is of another submission, on another cluster"


def test_a_world_of_another_size_than_planned_is_refused(tmp_path):
    (found,) = ends(start(write_plans(tmp_path, toy_plan(tmp_path)), slurm_env(0, 1)))
    assert found[0] == 1 and "slurm started 1 tasks on 1 nodes, but the plan asks for" in found[2]


def test_a_start_that_was_refused_leaves_word_for_its_batch_script(tmp_path):
    plans = write_plans(tmp_path, toy_plan(tmp_path))
    sweep = SweepDir(tmp_path)
    (tmp_path / "submissions").mkdir()
    plans = plans.rename(sweep.plans("t1"))
    ends(start(plans, slurm_env(0, 1, SLURM_RESTART_COUNT="2"), "--submission", "t1"))
    assert sweep.refusal("t1", "17", "2").read_text() == "1\n"


def test_a_withdrawn_submission_does_not_run(tmp_path):
    plan = toy_plan(tmp_path)
    plans = write_plans(tmp_path, plan)
    (tmp_path / "t1.withdrawn").touch()
    (code, _, said), other = ends(
        start(plans, {}, "--submission", "t1"), start(plans, {}, "--submission", "t2", "--element", "5")
    )
    assert code == 1 and "submission t1 was withdrawn" in said and said.count("\n") == 1
    assert "has no line for element 5" in other[2]
    assert not plan.rundir.path.exists()


def test_each_line_holds_the_plan_of_its_element(tmp_path):
    plans = [dataclasses.replace(toy_plan(tmp_path), run_id=str(i)) for i in range(3)]
    file = write_plans(tmp_path, *plans)
    assert [read_plan(file, i) for i in range(3)] == plans


@pytest.mark.parametrize(
    ("text", "element", "said"),
    [
        (None, 0, "No such file"),
        ("", 0, "has no line for element 0"),
        ("{}\n", 1, "has no line for element 1"),
        ("{}\n", -1, "has no line for element -1"),
        ('{"run_id": ', 0, "line 1 holds no plan"),
        ("[]\n{}\n", 0, "line 1 holds no plan"),
        ("7\n{}\n", 1, "line 2 holds no plan"),
    ],
)
def test_a_file_without_that_plan_is_told_in_one_line(tmp_path, text, element, said):
    file = tmp_path / "plans.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=said):
        read_plan(file, element)


def test_a_rank_saves_and_ends_when_its_queue_is_killed(tmp_path):
    """The queue is a process that starts a rank and waits; nobody is left to tell the rank anything."""
    plan = toy_plan(tmp_path, tasks_per_node=1, steps=10**9)
    plans = write_plans(tmp_path, plan)
    command = [sys.executable, "-uP", "-m", "launcher.runtime.worker", str(plans)]
    queue = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"],
        cwd=REPOSITORY, env=os.environ | queue_env(0, 1) | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _until(lambda: plan.rundir.latest.exists())
    queue.send_signal(signal.SIGKILL)
    queue.wait()
    _until(lambda: not plan.rundir.is_locked())
    assert plan.rundir.state() == "PREEMPTED"


def _until(event):
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.02)
