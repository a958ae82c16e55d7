"""Packed sweeps on a real Slurm: workers, members and nodes that are lost, preempted, cancelled or out of time."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from slurm.cluster import Cluster
from slurm.faults import fail_node, preempt, show_job
from slurm.processes import wait_until
from tests.integration.conftest import client_of
from tests.integration.lab import Run, assert_same, redone, rows
from tests.integration.packed import Packed, PackLab

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

SLOW = ("trainer.max_steps=60", "trainer.log_every=50", "checkpoint.every_steps=5")
QUICK = ("trainer.max_steps=10", "trainer.log_every=5", "checkpoint.every_steps=5")


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> PackLab:
    """One user for all tests here."""
    return PackLab(cluster, tmp_path_factory.mktemp("lab") / "home")


@pytest.fixture(autouse=True)
def mended(cluster: Cluster, lab: PackLab) -> Iterator[None]:
    """Whatever a test breaks is whole again after it, and none of its jobs is left."""
    yield
    cluster.up()
    client = client_of(cluster, lab.home)
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def gone(sweep: Packed) -> bool:
    """Whether Slurm has ended all workers."""
    return not any(show_job(sweep.lab.cluster, job).state in ("RUNNING", "PENDING", "COMPLETING") for job in sweep.jobs)


def test_twelve_runs_share_four_jobs(lab: PackLab):
    sweep = lab.sweep_of("twelve", *QUICK, "trainer.seed=range(0,12)", "launch.pack=3")
    assert len(sweep.jobs) == 4 and {row.state for row in rows(lab, "twelve")} <= {"SUBMITTED", "RUNNING", "COMPLETED"}
    sweep.wait_done()
    assert all(len(run.events("start")) == 1 for run in sweep.runs)
    assert {run.job for run in sweep.runs} <= set(sweep.jobs)
    sweep.wait(lambda: {show_job(lab.cluster, job).state for job in sweep.jobs} == {"COMPLETED"})
    assert [row.state for row in rows(lab, "twelve")] == ["COMPLETED"] * 12


def test_a_preempted_worker_gives_its_members_back_and_nothing_is_done_again(lab: PackLab):
    whole = lab.uninterrupted(*SLOW, "trainer.seed=1")
    whole.wait_for("COMPLETED")
    sweep = lab.sweep_of("preempted", *SLOW, "trainer.seed=1,2,3", "launch.pack=2")
    (first, *_) = [run for run in sweep.wait_training(2) if run.read("plan.json")["science"]["trainer"]["seed"] == 1]
    preempt(lab.cluster, first.job)
    sweep.wait_done()
    assert_same(Run(lab, first.path, first.job), whole)
    assert sum(redone(run) for run in sweep.runs) == 0, sweep.story()
    assert len(first.events("start")) == 2


def test_a_worker_a_member_and_a_node_are_lost_and_each_run_is_done_once(lab: PackLab):
    sweep = lab.sweep_of("lost", *SLOW, "trainer.seed=range(0,8)", "launch.pack=2")
    sweep.wait_training(3)
    sweep.kill(sweep.workers()[0], signal.SIGKILL)
    sweep.kill(sweep.members()[-1], signal.SIGKILL)
    victim = sweep.wait_training(1)[-1]
    fail_node(lab.cluster, victim.events("start")[-1]["hosts"][0])
    sweep.wait_done()
    assert max(redone(run) for run in sweep.runs) <= 5, "at most the steps since the last checkpoint"


def test_where_one_worker_is_cancelled_by_scancel_the_others_do_its_work(lab: PackLab):
    sweep = lab.sweep_of("scancel", *SLOW, "trainer.seed=range(0,5)", "launch.pack=3")
    run = sweep.wait_training(2)[0]
    client_of(lab.cluster, lab.home)("scancel", run.job)
    sweep.wait_done()
    assert show_job(lab.cluster, run.job).state == "CANCELLED"
    assert sweep.runs[0].lab is lab and redone(run) <= 5


def test_one_run_and_then_the_sweep_are_cancelled_and_the_same_command_goes_on(lab: PackLab):
    words = (*SLOW, "trainer.seed=range(0,6)", "launch.pack=3")
    sweep = lab.sweep_of("cancelled", *words)
    one = sweep.wait_training(2)[0]
    done = lab.type("launcher", "cancel", str(one.path))
    assert done.returncode == 0 and "cancelled 1 packed runs" in done.stdout, done.stdout + done.stderr
    one.wait_for("CANCELLED")
    sweep.wait_training(2)
    assert not gone(sweep), "the others go on"
    done = lab.type("launcher", "cancel", "runs/cancelled")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep.wait(lambda: gone(sweep))
    states = {row.state for row in rows(lab, "cancelled")}
    assert states <= {"CANCELLED", "COMPLETED"}, sweep.story()
    assert len(one.events("start")) == 1
    lab.sweep_of("cancelled", *words)
    sweep.wait_done()
    assert sum(redone(run) for run in sweep.runs) == 0, "cancel lets them save"


def test_a_worker_that_is_out_of_time_is_requeued_and_its_members_go_on(lab: PackLab):
    limit = ("hardware.time_min=1", "hydra.launcher.signal_delay_s=50")
    slow = ("trainer.max_steps=120", "trainer.log_every=250", "checkpoint.every_steps=50")
    sweep = lab.sweep_of("timeout", *slow, *limit, "trainer.seed=1,2", "launch.pack=2")
    sweep.wait_done(400)
    (worker,) = sweep.path.glob("queues/*/workers/*.jsonl")
    assert "out of time" in worker.read_text(), sweep.story()
    assert sum(redone(run) for run in sweep.runs) == 0, sweep.story()


def test_sixty_runs_whose_workers_are_killed_at_random_are_all_finished_once(lab: PackLab):
    sweep = lab.sweep_of("storm", "trainer.max_steps=20", "trainer.log_every=20", "checkpoint.every_steps=5",
                         "trainer.seed=range(0,60)", "launch.pack=15", "requeue.max_attempts=99",
                         "requeue.max_without_progress=9")  # fmt: skip
    drawn, client = random.Random(60), client_of(lab.cluster, lab.home)
    kills: list[str] = []

    def strike() -> bool:
        """One fault, unless all is done."""
        what = drawn.choice(["worker", "member", "requeue"])
        found = sweep.workers() if what == "worker" else sweep.members()
        if what == "requeue":
            running = [job for job in sweep.jobs if show_job(lab.cluster, job).state == "RUNNING"]
            if running:
                with suppress(AssertionError):  # it has just ended
                    client("scontrol", "requeue", drawn.choice(running))
                    kills.append(what)
        elif found:
            with suppress(ProcessLookupError):
                sweep.kill(drawn.choice(found), signal.SIGKILL)
                kills.append(what)
        return sweep.states()["COMPLETED"] == 60

    while not strike() and len(kills) < 25:
        wait_until(lambda: sweep.states()["COMPLETED"] == 60, drawn.uniform(2, 3))
    sweep.wait_done(300)
    assert len(kills) >= 3, kills
    assert sum(sweep.finished().values()) <= 62, "a kill seldom falls between a task's last line and its commit"
