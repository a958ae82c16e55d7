"""Nodes that fail, come back late, or live on where Slurm has given them up; a controller that is gone when needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from launcher.runtime.rundir import checkpoint_of
from slurm.cluster import Cluster
from slurm.faults import fail_node, restore_node, show_job
from slurm.processes import Process, wait_until
from tests.integration.conftest import client_of
from tests.integration.lab import ONE, TWO, Lab, Run, assert_same, redone, samples

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

EVERY = 20
"""Steps between checkpoints, in ``lab.BASE``."""


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One user for all tests here."""
    yield Lab(cluster, tmp_path_factory.mktemp("lab") / "home")


@pytest.fixture(autouse=True)
def mended(cluster: Cluster, lab: Lab) -> Iterator[None]:
    """Whatever a test breaks is whole again after it, and none of its jobs is left."""
    yield
    cluster.up()
    client = client_of(cluster, lab.home)
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def untouched(lab: Lab, *wish: str) -> Run:
    """The run to which nothing happens, at its end: its node may fail now."""
    whole = lab.uninterrupted(*wish)
    whole.wait_for("COMPLETED")
    return whole


def nodes_of(run: Run, attempt: int) -> set[str]:
    return set(run.events("start")[attempt - 1]["hosts"])


def resumed_at(run: Run) -> int:
    """The step that the newest attempt began with."""
    return int(run.events("start")[-1]["step"])


def wait_for_attempt(run: Run, attempt: int, seconds: float = 120) -> None:
    run.wait(lambda: len(run.events("start")) >= attempt, seconds)


def left_on(lab: Lab, node: str) -> list[Process]:
    """What jobs have left running on ``node``."""
    return [process for process in lab.cluster.processes() if (process.kind, process.node) == ("task", node)]


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_run_whose_node_fails_goes_on_on_others(lab: Lab, which: str):
    # On the first node the batch script runs, too, which cannot requeue the job then: Slurm does.
    wish = (*TWO, "trainer.max_steps=200")
    whole = untouched(lab, *wish)
    run = lab.run(f"node-{which}", *wish)
    run.wait_for_step(50)
    failed = {"first": min, "second": max}[which](nodes_of(run, 1))
    fail_node(lab.cluster, failed)
    run.wait(lambda: not run.ranks())
    reached = max(step for step, _ in samples(run))
    under_way = bool(list(run.path.glob("checkpoints/.unfinished-*")))
    wait_for_attempt(run, 2)
    assert failed not in nodes_of(run, 2)
    assert reached - resumed_at(run) <= EVERY * (1 + under_way)
    assert_same(run, whole)
    assert restore_node(lab.cluster, failed) == f"{failed} is back"


def test_ranks_that_live_on_where_slurm_gave_their_node_up_are_fenced_off_and_their_node_may_come_back(lab: Lab):
    wish = (*ONE, "trainer.max_steps=420", "checkpoint.every_steps=5")
    whole = untouched(lab, *wish)
    run = lab.run("split", *wish, "trainer.log_every=150")
    run.wait_for_step(10)
    (lost,) = nodes_of(run, 1)
    (old,) = run.ranks().values()
    fail_node(lab.cluster, lost, tasks_survive=True)
    seen: set[str] = set()

    def look() -> bool:
        seen.update(path.name for path in run.checkpoints())
        return len(run.events("start")) >= 2

    before = run.step
    run.wait(lambda: show_job(lab.cluster, run.job).restarts == 1)
    assert run.ranks() == {0: old}, "Slurm has requeued the job, and its old rank lives on"
    run.wait(look, 120)
    begun_at = resumed_at(run)
    assert begun_at > before, "it trained on until another attempt took the run over"
    assert old not in run.ranks().values(), "it ended by itself: its node is not there to end it"
    (end,) = [event for event in run.events("end") if event["attempt"] == 1]
    assert end["code"] == 76 and "attempt 2 on " in end["reason"] and "has taken the run over" in end["reason"]
    assert end["step"] - begun_at <= 5 * 2 + 20, "within seconds"
    assert "has taken the run over" in (run.path / "logs" / "rank0.log").read_text()
    assert lost not in nodes_of(run, 2)

    run.wait(lambda: not left_on(lab, lost))  # nor is its shell left, which might have had the job requeued
    run.wait_for_step(begun_at + 5, attempt=2)
    restore_node(lab.cluster, lost)
    run.wait(lambda: look() and run.state != "RUNNING")
    assert_same(run, whole)
    look()
    of_the_old = [step for kind, step, attempt in map(checkpoint_of, seen) if attempt == 1]
    assert max(of_the_old) == begun_at, "nothing of the old attempt was committed after the new one began"
    assert [(event["attempt"], event["restarts"]) for event in run.events("start")] == [(1, 0), (2, 1)]
    assert run.events("requeue") == [], "the shell of the old attempt asked for nothing"
    assert show_job(lab.cluster, run.job).restarts == 1


def test_a_controller_that_is_gone_when_the_job_is_to_be_requeued_is_waited_for(lab: Lab):
    wish = (*ONE, "trainer.max_steps=200")
    run, whole = lab.run("no-controller", *wish), lab.uninterrupted(*wish)
    controllers = [p for p in lab.cluster.processes() if p.kind in ("slurmctld", "slurmscriptd")]
    assert controllers
    run.wait_for_step(30)
    for process in controllers:
        os.kill(process.pid, signal.SIGKILL)
    run.kill(0, signal.SIGKILL)
    (log,) = (run.path.parent / "jobs").glob("*.err")
    run.wait(lambda: "trying again in 5 s" in log.read_text())
    lab.cluster.up()
    wait_for_attempt(run, 2)
    assert_same(run, whole)
    assert [event["reason"] for event in run.events("requeue")] == ["broke down: a rank was killed (SIGKILL)"]
    assert redone(run) <= EVERY and show_job(lab.cluster, run.job).restarts == 1
