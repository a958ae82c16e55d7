"""Preemptions that do not begin with the job's own signal, or leave no grace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.render import Spec
from tests.integration.lab import TWO, Lab, Run, assert_same, redone

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

STEPS = ("trainer.max_steps=200", "checkpoint.keep_last=99")


@pytest.fixture(scope="module")
def lab_of(
    slurm_installed: None, folders: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Spec], Lab]]:
    """``lab_of(spec)``: a user of a cluster of their own, which is gone at the end with all its jobs."""
    labs: dict[Spec, Lab] = {}

    def new(spec: Spec) -> Lab:
        if spec not in labs:
            cluster = Cluster(folders(), spec)
            cluster.up()
            labs[spec] = Lab(cluster, tmp_path_factory.mktemp("lab") / "home")
        return labs[spec]

    yield new
    for lab in labs.values():
        lab.cluster.down()


@pytest.fixture
def lab_without_grace(lab_of: Callable[[Spec], Lab]) -> Lab:
    """Of a preemption's warning and its SIGTERM one follows the other at once; SIGKILL comes 12 s later."""
    return lab_of(Spec(nodes=2, grace_s=0, kill_wait_s=12))


def reasons(run: Run) -> list[str]:
    return [event["reason"] for event in run.events("requeue")]


def whole(lab: Lab) -> Run:
    return lab.uninterrupted(*TWO, *STEPS, "trainer.log_every=0")


def test_a_preemption_that_begins_with_sigterm_loses_nothing(lab_of: Callable[[Spec], Lab]):
    lab = lab_of(Spec(nodes=2, user_signal=False))
    run = lab.run("term", *TWO, *STEPS)
    run.wait_for_step(30)
    preempt(lab.cluster, run.job)
    assert reasons(run) == ["preempted"] and show_job(lab.cluster, run.job).restarts == 1
    assert_same(run, whole(lab))
    assert redone(run) == 0 and len(run.events("start")) == 2


def test_a_preemption_without_grace_loses_nothing_where_a_save_is_fast_enough(lab_without_grace: Lab):
    lab = lab_without_grace
    run = lab.run("quick", *TWO, *STEPS)
    run.wait_for_step(30)
    preempt(lab.cluster, run.job)
    assert show_job(lab.cluster, run.job).restarts == 1
    assert_same(run, whole(lab))
    (end, _), (_, second) = run.events("end"), run.events("start")
    assert (end["code"], second["step"], redone(run)) == (75, end["step"], 0), run.story()
    assert reasons(run) == [], "Slurm has requeued it itself"


def test_a_save_that_is_cut_off_is_never_used_and_the_one_before_it_is(lab_without_grace: Lab):
    lab = lab_without_grace
    run = lab.run("slow", *TWO, *STEPS)
    orders = run.path.parent / "orders"
    run.order("hold", 41)
    run.wait(lambda: len(list(orders.glob("holding.*"))) == 2 and len(run.checkpoints()) == 2)
    run.order("slow_sync", 2)  # the status of two steps takes 8 s then, a save 12 s: SIGKILL comes between
    blocker = threading.Thread(target=preempt, args=(lab.cluster, run.job))
    blocker.start()
    run.wait(lambda: show_job(lab.cluster, run.job).state != "RUNNING")  # both signals have been sent
    (orders / "hold").unlink()
    run.wait(lambda: list(run.path.glob("checkpoints/.unfinished-*")))
    blocker.join()
    run.wait(lambda: not run.tasks())
    (orders / "slow_sync").unlink()
    left = list(run.path.glob("checkpoints/.unfinished-*"))
    assert len(left) == 1 and run.events("end") == [] and len(run.checkpoints()) == 2, run.story()
    assert_same(run, whole(lab))
    second = run.events("start")[1]
    assert (second["step"], second["from"]) == (40, "step-000000000040.a0001"), run.story()
    assert int(left[0].name.partition("step-")[2][:12]) - second["step"] <= 20, "at most one interval is done again"
    assert not list(run.path.glob("checkpoints/.*")) and reasons(run) == []
