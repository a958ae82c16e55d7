"""Beyond what was asked for, on a real Slurm: a smaller shape that starts at once, and a child that trains longer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt
from slurm.processes import wait_until
from tests.integration.conftest import Client, client_of
from tests.integration.lab import TWO, Lab, Run, redone, samples

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

FIRST, LAST = 40, 160


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path) -> Iterator[Lab]:
    """A user whose jobs are gone at the end."""
    lab = Lab(cluster, tmp_path / "home")
    yield lab
    lab.type("launcher", "cancel", "runs", "--grace", "0")


@pytest.fixture
def busy(cluster: Cluster, tmp_path: Path) -> Iterator[Client]:
    """All nodes but one are taken for half an hour."""
    client = client_of(cluster, tmp_path)
    words = ("sbatch", "--parsable", "--exclusive", "--partition=low", "--time=30", "--wrap=sleep 1800")
    jobs = [client(*words).strip() for _ in range(cluster.spec.nodes - 1)]
    assert wait_until(lambda: client("squeue", "--noheader", "--format=%T").split() == ["RUNNING"] * len(jobs), 30)
    yield client
    client("scancel", *jobs)


def advised(lab: Lab, name: str) -> dict:
    """What ``status --advise`` says of the one run of a sweep that waits."""
    (row,) = json.loads(lab.type("launcher", "status", f"runs/{name}", "--advise", "--json").stdout)
    return row["advice"] or {}


def test_a_run_that_waits_is_told_a_shape_that_starts_and_its_child_goes_on_to_the_bit(lab: Lab, busy: Client):
    parent = lab.run("waits", *TWO, f"trainer.max_steps={FIRST}", "hydra.launcher.timeout_min=40")
    smaller = "hydra.launcher.nodes=1"
    assert wait_until(lambda: advised(lab, "waits").get("reason") == "Resources", 30), advised(lab, "waits")
    told = advised(lab, "waits")
    (one,) = [one for one in told["suggestions"] if one["overrides"] == [smaller]]
    assert one["now"] and not one["preempts"] and one["start"] < told["expected"], told
    said = lab.type("launcher", "status", "runs/waits", "--advise").stdout
    run = parent.path.name
    assert "1 node instead of 2: could start now (asked: " in said and f"launcher resume {run} {smaller}" in said, said

    assert lab.type("launcher", "cancel", run).returncode == 0
    resumed = lab.type("launcher", "resume", run, smaller)
    assert resumed.returncode == 0, resumed.stderr
    parent = lab.found("waits")
    parent.wait_for("COMPLETED", seconds=60)

    made = lab.type("launcher", "resume", run, f"trainer.max_steps={LAST}", "launch.name=child", smaller)
    assert made.returncode == 0, made.stderr
    child = lab.found("child")
    child.wait_for_step(FIRST + 20)
    began = samples(parent)
    shutil.rmtree(parent.path)
    preempt(lab.cluster, child.job)
    whole = lab.run("whole", f"trainer.max_steps={LAST}")
    for waited in (child, whole):
        waited.wait_for("COMPLETED", "FAILED", "CANCELLED")
    assert weights(child) == weights(whole), child.story()
    assert began + samples(child) == samples(whole) and redone(child) == 0
    first, second = child.events("start")
    assert first["step"] == FIRST < second["step"] and second["from"]


def weights(run: Run) -> str:
    """Hash of what it has learned."""
    return str(run.read("summary.json").get("weights_sha256"))
