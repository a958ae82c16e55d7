"""Clusters that do not requeue: what was preempted there is continued by a successor, and nothing is done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.processes import wait_until
from slurm.render import Spec
from tests.integration.conftest import client_of
from tests.integration.lab import BASE, Run, assert_same, give_order, redone, rows
from tests.integration.packed import PackLab

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

PACE = ("trainer.log_every=20", "trainer.max_steps=150", "checkpoint.every_steps=50")


@pytest.fixture(scope="module")
def cluster(slurm_installed: None, folders: Callable[[], Path]) -> Iterator[Cluster]:
    """One that cancels what it preempts, after a grace."""
    with Cluster(folders(), Spec(nodes=2, gpus=0, requeue=False, kill_wait_s=30)) as running:
        yield running


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> PackLab:
    """One user for all tests here."""
    return PackLab(cluster, tmp_path_factory.mktemp("lab") / "home")


@pytest.fixture(autouse=True)
def emptied(cluster: Cluster, lab: PackLab) -> Iterator[None]:
    """No job is left of a test."""
    yield
    client = client_of(cluster, lab.home)
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def jobs_of(lab: PackLab, name: str) -> list[str]:
    """Slurm's numbers of all that was submitted of a sweep, in that order."""
    lines = (lab.home / "runs" / name / "submissions.jsonl").read_text().splitlines()
    return [event["job_id"] for line in lines if (event := json.loads(line))["event"] == "submitted"]


def preempt_held(run: Run, job: str, then: int | None = None) -> None:
    """Preempt ``job`` while its rank is held in a step, which it ends with; ``then``: where the next one is held."""
    run.wait_held(1)
    with ThreadPoolExecutor() as pool:
        told = pool.submit(preempt, run.lab.cluster, job)
        run.wait(lambda: show_job(run.lab.cluster, job).preempted_at is not None)
        run.move_on(then)
        told.result()


def queued(lab: PackLab) -> set[str]:
    """Jobs that Slurm has, elements of arrays apart."""
    return set(client_of(lab.cluster, lab.home)("squeue", "--noheader", "--array", "--format=%i").split())


def test_a_preempted_run_is_continued_by_its_successor_to_the_bit(lab: PackLab):
    whole = lab.uninterrupted(*PACE)
    words = ("hydra/launcher=submitit_slurm", *BASE, *PACE, "launch.name=bits")
    give_order(lab.home / "runs" / "bits", "hold", 20)
    done = lab.type("launcher.run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    said = "launch.continue=auto: JobRequeue=0, so runs go on by a chain: 3 successors for each job (launch.chain)\n"
    assert done.stderr.count(said) == 1
    run, (first, second, third, last) = lab.found("bits"), jobs_of(lab, "bits")
    preempt_held(run, first, then=90)
    assert show_job(lab.cluster, first).state == "FAILED", "it saved and left within its grace"
    (row,) = rows(lab, "bits")
    assert (row.state, row.job_id) in (("REQUEUED", second), ("RUNNING", second)), row
    assert row.state == "RUNNING" or f"goes on in job {second}" in row.reason, row
    again = lab.type("launcher.run", *words)
    assert again.returncode == 0 and "have a job or a process already" in again.stderr, again.stderr
    assert jobs_of(lab, "bits") == [first, second, third, last], "they are adopted, none is added"
    preempt_held(run, second)
    assert_same(run, whole)
    assert redone(run) == 0
    assert [(e["reason"], e["next"]) for e in run.events("requeue")] == [("preempted", second), ("preempted", third)]
    run.wait(lambda: not queued(lab))
    assert show_job(lab.cluster, third).state == "COMPLETED"
    assert show_job(lab.cluster, last).state in ("CANCELLED", "COMPLETED"), "nobody needs it any more"
    assert len(run.events("start")) == 3, "it wrote no attempt"


def test_an_element_goes_on_while_others_of_its_array_run_and_cancel_ends_all_of_the_chain(lab: PackLab):
    client, folder = client_of(lab.cluster, lab.home), lab.home / "runs" / "elements"
    give_order(folder, "hold", 100)
    client("scontrol", "update", "partitionname=low", "gracetime=0")  # SIGTERM at once, SIGKILL after KillWait
    try:
        words = ("launch.continue=chain", "launch.chain=2", "hardware.cpus_per_task=4", "trainer.seed=1,2")
        sweep = lab.sweep_of("elements", *PACE, *words)
        first, second, third = jobs_of(lab, "elements")
        assert {f"{second}_0", f"{second}_1", f"{third}_0", f"{third}_1"} <= queued(lab)
        victim, other = sorted(sweep.wait_training(2, step=20), key=lambda run: run.job)
        preempt(lab.cluster, victim.job)
        assert show_job(lab.cluster, victim.job).state == "PREEMPTED", "Slurm ended it, our door was not asked"
    finally:
        client("scontrol", "update", "partitionname=low", f"gracetime={lab.cluster.spec.grace_s}")
    victim.wait(lambda: len(victim.events("start")) == 2 and victim.state == "RUNNING")
    assert [event["job_id"] for event in victim.events("start")] == [f"{first}_0", f"{second}_0"]
    assert redone(victim) == 0, victim.story()
    assert (other.state, len(other.events("start"))) == ("RUNNING", 1), "it did not have to end"
    done = lab.type("launcher", "cancel", "--grace", "0", "runs/elements")
    assert done.returncode == 0, done.stderr
    other.move_on()  # who is held saves at SIGTERM once it is let go
    assert wait_until(lambda: not queued(lab), 60), "successors too"
    assert {row.state for row in rows(lab, "elements")} == {"CANCELLED"}, sweep.story()


def test_successors_of_packed_workers_are_more_workers(lab: PackLab):
    sweep = lab.sweep_of("packed", *PACE, "trainer.log_every=50", "trainer.seed=1,2,3", "launch.pack=2")
    heads, first, *_ = jobs_of(lab, "packed")
    victim = sweep.wait_training(2, step=10)[0]
    assert victim.job.partition("_")[0] == heads
    preempt(lab.cluster, victim.job)
    sweep.wait_done()
    assert sum(redone(run) for run in sweep.runs) == 0, sweep.story()
    assert victim.events("start")[-1]["job_id"].partition("_")[0] == first, sweep.story()
    sweep.wait(lambda: not queued(lab))
