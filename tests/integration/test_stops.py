"""Runs that are asked to stop, by whomever and however often: saved once, requeued once, and the end is the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.processes import wait_until
from tests.conftest import small
from tests.integration.conftest import client_of
from tests.integration.lab import FOUR, TWO, Lab, Run, assert_same, redone, rows

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

KEEP = "checkpoint.keep_last=99"
"""So that every save of a run can be counted."""
WITNESS = """
for name in USR2 TERM; do trap "touch '$1'/$name" $name; done
touch "$1/ready"
while [ ! -e "$1/TERM" ]; do sleep 0.05; done
"""
"""A step beside a job's own: it gets the signals that Slurm sends to all steps of the job, and tells which."""


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One user for all tests here; no job of theirs is left."""
    made = Lab(cluster, tmp_path_factory.mktemp("lab") / "home")
    yield made
    call(made, "scancel", f"--user={os.getuid()}")
    assert is_empty(made)


def call(lab: Lab, *words: str) -> str:
    """What a command of Slurm prints."""
    return client_of(lab.cluster, lab.home)(*words)


def is_empty(lab: Lab) -> bool:
    """Whether the queue is, within a minute."""
    return wait_until(lambda: not call(lab, "squeue", "--noheader"), 60)


def slurms_record(run: Run) -> list[str]:
    """State of each start of the run's job, oldest first, as Slurm's accounting has it."""
    words = ("sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--format=State", "--jobs", run.job)
    return [line.split()[0] for line in call(run.lab, *words).splitlines()]


def whole(lab: Lab, *hardware: str) -> Run:
    """300 steps that nothing happens to, as fast as they can."""
    return lab.uninterrupted(*hardware, "trainer.max_steps=300", "trainer.log_every=0")


def start(lab: Lab, name: str, *overrides: str) -> Run:
    """A run of 300 steps of 20 ms and more."""
    return lab.run(name, "trainer.max_steps=300", KEEP, *overrides)


def reasons(run: Run) -> list[str]:
    return [event["reason"] for event in run.events("requeue")]


def saved_steps(run: Run, attempt: int = 1) -> list[int]:
    """Steps that an attempt has saved."""
    return [int(path.name[5:17]) for path in run.checkpoints() if path.name.endswith(f".a{attempt:04d}")]


def assert_saved_once_and_requeued_once(run: Run, reason: str) -> None:
    """The first attempt saved where its cadence said and where it stopped, and Slurm started it anew once."""
    run.wait(lambda: len(run.events("start")) == 2)
    (end,) = run.events("end")[:1]
    steps = [*range(20, end["step"], 20), end["step"]]
    assert (saved_steps(run), end["code"]) == (steps, 75), run.story()
    assert (run.events("start")[1]["step"], reasons(run)) == (end["step"], [reason]), run.story()
    assert show_job(run.lab.cluster, run.job).restarts == 1


def test_a_run_that_is_out_of_time_again_and_again_goes_on_each_time(lab: Lab):
    # Slurm warns up to 30 s too early: each start has 15 to 45 s, the run takes 48 s and more.
    limits = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=15")
    run = lab.run("time", *TWO, *limits, "trainer.max_steps=240", "trainer.log_every=200", KEEP)
    run.wait_for("COMPLETED", "FAILED", "CANCELLED", seconds=240)
    assert_same(run, lab.uninterrupted(*TWO, "trainer.max_steps=240", "trainer.log_every=0"))
    assert redone(run) == 0 and set(reasons(run)) == {"out of time"}, run.story()
    # On a busy machine a start may be out of time before it has begun: it is put back all the same.
    assert show_job(lab.cluster, run.job).restarts == len(reasons(run)) >= len(run.events("start")) - 1 > 0


def test_a_preempted_job_with_little_time_was_not_out_of_time_and_its_own_end_is_not_the_jobs(lab: Lab):
    place = "+hydra.launcher.additional_parameters.nodelist=n1"
    short = ("hydra.launcher.timeout_min=5", place, "trainer.log_every=60")
    runs = [start(lab, "short", *short), start(lab, "short-once", *short, "hydra.launcher.max_num_timeout=0")]
    for run in runs:
        run.wait_for_step(10)
    preempt(lab.cluster, runs[0].job)  # and with it all that runs beside it
    for run in runs:
        run.wait(lambda run=run: show_job(lab.cluster, run.job).restarts == 1)
        assert reasons(run) == ["preempted"]
        assert_same(run, whole(lab))
        assert redone(run) == 0 and len(run.events("start")) == 2
        assert wait_until(lambda run=run: slurms_record(run)[-1:] == ["COMPLETED"], 30)
        # Its ranks were gone long before the grace was over: for Slurm that alone would have been its end.
        assert {*slurms_record(run)[:-1]} <= {"REQUEUED", "PREEMPTED"}, slurms_record(run)


def test_a_run_that_is_warned_of_its_time_limit_and_preempted_then_saves_once(lab: Lab, tmp_path: Path):
    run = start(lab, "both", *TWO, "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=75")
    run.order("hold", 250)
    run.wait(lambda: show_job(lab.cluster, run.job).state == "RUNNING")
    beside = ("srun", f"--jobid={run.job}", "--overlap", "--nodes=1", "--ntasks=1", "--mem=0", "bash", "-c")
    env = os.environ | {"SLURM_CONF": str(lab.cluster.slurm_conf)}
    witness = subprocess.Popen([*beside, WITNESS, "witness", str(tmp_path)], env=env)
    run.wait((tmp_path / "ready").exists)
    run.wait(lambda: len(list(run.path.parent.glob("orders/holding.*"))) == 2)
    run.wait((tmp_path / "USR2").exists)  # 15 to 45 s after its start
    blocker = threading.Thread(target=preempt, args=(lab.cluster, run.job))
    blocker.start()
    run.wait((tmp_path / "TERM").exists)
    (run.path.parent / "orders" / "hold").unlink()
    blocker.join()
    assert_saved_once_and_requeued_once(run, "preempted")
    assert_same(run, whole(lab, *TWO))
    assert redone(run) == 0
    witness.wait(60)


def test_a_requeue_by_an_admin_is_not_followed_by_one_of_ours(lab: Lab):
    run = start(lab, "admin", *TWO)
    run.wait_for_step(30)
    call(lab, "scontrol", "requeue", run.job)
    assert_same(run, whole(lab, *TWO))
    assert redone(run) == 0 and len(run.events("start")) == 2, run.story()
    assert run.events("end")[0]["code"] == 75 and reasons(run) == []
    assert show_job(lab.cluster, run.job).restarts == 1


@pytest.mark.parametrize("how", ["scancel", "launcher cancel"])
def test_a_cancelled_run_is_saved_and_stays_cancelled_until_its_user_starts_it_again(lab: Lab, how: str):
    name = how.replace(" ", "-")
    run = start(lab, name, *TWO)
    run.wait_for_step(30)
    if how == "scancel":
        call(lab, "scancel", run.job)
    else:
        assert lab.type("launcher", "cancel", f"runs/{name}").returncode == 0
    assert is_empty(lab)
    job = show_job(lab.cluster, run.job)
    assert (job.state, job.restarts, reasons(run)) == ("CANCELLED", 0, []), run.story()
    (row,) = rows(lab, name)
    (end,) = run.events("end")
    assert (row.state, end["code"], saved_steps(run)[-1]) == ("CANCELLED", 75, end["step"]), run.story()
    again = start(lab, name, *TWO)
    assert again.job != run.job
    assert_same(again, whole(lab, *TWO))
    assert redone(again) == 0 and [event["step"] for event in again.events("start")] == [0, end["step"]]


def test_five_signals_within_a_second_are_one_save_and_one_requeue(lab: Lab):
    run = start(lab, "five", *TWO)
    run.wait_for_step(30)
    for _ in range(5):
        call(lab, "scancel", "--signal=USR2", run.job)
    assert_saved_once_and_requeued_once(run, "asked to stop")
    assert_same(run, whole(lab, *TWO))
    assert redone(run) == 0


def test_a_signal_to_one_rank_stops_all_and_the_next_start_needs_no_port_of_the_last(lab: Lab):
    run = start(lab, "one-rank", *FOUR)
    run.wait_for_step(30)
    run.kill(2, signal.SIGUSR2)
    run.wait(lambda: run.events("end"))
    (begun,) = run.events("start")
    met = run.read(f"attempts/{begun['incarnation']}/rendezvous.json")
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def bound() -> bool:
        try:
            taken.bind(("", met["port"]))
        except OSError:  # its rank 0 is not gone yet
            return False
        return True

    with taken:
        run.wait(bound)
        taken.listen()
        assert len(run.events("start")) == 1, "it was to be taken before the second start"
        assert_saved_once_and_requeued_once(run, "asked to stop")
        assert_same(run, whole(lab, *FOUR))
    second = run.events("start")[1]
    assert second["incarnation"] != begun["incarnation"]
    assert run.read(f"attempts/{second['incarnation']}/rendezvous.json")["port"] != met["port"]
    assert redone(run) == 0


def test_a_signal_while_a_save_is_written_leaves_that_save_and_the_last_one_whole(lab: Lab):
    run = start(lab, "in-a-save", *TWO)
    run.order("slow_sync", 0.5)
    run.wait(lambda: list(run.path.glob("checkpoints/.unfinished-step-000000000020.*")))
    call(lab, "scancel", "--signal=USR2", run.job)
    run.wait(lambda: run.events("end"))
    assert saved_steps(run)[0] == 20 < saved_steps(run)[1] < 40, "it stopped while step 20 was being written"
    (run.path.parent / "orders" / "slow_sync").unlink()
    assert_saved_once_and_requeued_once(run, "asked to stop")
    assert_same(run, whole(lab, *TWO))
    assert redone(run) == 0 and not list(run.path.glob("checkpoints/.*"))


def test_data_workers_that_get_the_signal_too_leave_stopping_to_their_rank(lab: Lab):
    task = ("task.target=vlm.task:train", "task.schema=vlm.config:TrainConfig", "data.workers=2")
    often = (
        "trainer.max_steps=500",
        "trainer.val_every=250",
        "trainer.log_samples=true",
        "checkpoint.every_steps=9999",
    )
    words = [*small(), "model=tiny", *task, *often]
    run = lab.run("workers", *words, KEEP)
    run.wait_for_step(100)
    assert len(run.tasks()) == 3, "a rank and its two workers"
    call(lab, "scancel", "--signal=USR2", run.job)
    run.wait(lambda: len(run.events("start")) == 2)
    (end,) = run.events("end")
    assert (saved_steps(run), reasons(run)) == ([end["step"]], ["asked to stop"]), run.story()
    assert_same(run, lab.uninterrupted(*words))
    assert redone(run) == 0 and show_job(lab.cluster, run.job).restarts == 1
