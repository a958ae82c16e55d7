"""Status, logs, cancel and doctor against a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.cluster import Cluster
from slurm.processes import wait_until
from tests.conftest import small
from tests.integration.conftest import Client, client_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

QUEUE = ("-m", "hydra/launcher=submitit_slurm", "site=disposable", "site.slurm_conf=null", "hardware.device=cpu")
LONG = ("trainer.max_steps=1000000", "trainer.val_every=1000000", "checkpoint.every_steps=1000000")


class User:
    """Somebody with a shell in ``folder``; ``module("launcher", …)`` is one command of theirs."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.folder = folder
        self.begun: list[subprocess.Popen[str]] = []
        self.env = os.environ | {
            "SLURM_CONF": str(cluster.slurm_conf), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"
        }  # fmt: skip

    def module(self, *words: str, code: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=self.folder, env=self.env, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """One command that goes on for a while."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *words], cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True
        )
        self.begun.append(process)
        return process

    def rows(self, folder: str) -> list[dict[str, Any]]:
        """What status says."""
        rows: list[dict[str, Any]] = json.loads(self.module("launcher", "status", folder, "--json").stdout)
        return rows

    def submit(self, name: str, *overrides: str) -> list[dict[str, Any]]:
        """A sweep; returns its rows."""
        self.module("launcher.run", *QUEUE, f"launch.name={name}", *small(*overrides))
        return self.rows(f"runs/{name}")


@pytest.fixture(scope="module")
def user(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """One user for all tests here: what has been rendered once need not be again."""
    made = User(cluster, tmp_path_factory.mktemp("user"))
    yield made
    for process in made.begun:
        process.kill()
        process.communicate()


@pytest.fixture
def client(cluster: Cluster, user: User) -> Client:
    """Slurm's own commands of that user."""
    return client_of(cluster, user.folder)


def read_until(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> str:
    """The first line of stdout that is wanted; fails where the process ends before, or a minute passes."""
    assert process.stdout is not None
    late = threading.Timer(60, process.kill)
    late.start()
    try:
        for line in process.stdout:
            if wanted(line):
                return line
    finally:
        late.cancel()
    raise AssertionError(f"it ended: {process.stderr.read() if process.stderr else ''}")


def test_one_run_succeeds_and_one_diverges(user: User):
    before = user.submit("pair", "optim.lr=1e-3,1e38")
    assert {row["state"] for row in before} <= {"SUBMITTED", "RUNNING", "COMPLETED", "FAILED"}
    watched = user.module("launcher", "status", "runs/pair", "--watch", timeout=90).stdout
    assert watched.splitlines()[-1].startswith("1 COMPLETED, 1 FAILED  ")

    good, bad = user.rows("runs/pair")
    assert (good["state"], good["step"], good["differs"]) == ("COMPLETED", 6, ["optim.lr=0.001"])
    assert bad["state"] == "FAILED"
    table = user.module("launcher", "status").stdout
    assert "COMPLETED" in table and "optim.lr=1e+38" in table and "hydra/launcher" not in table

    logs = user.module("launcher", "logs", bad["job_id"])
    assert "rank 0 on" in logs.stderr and "is FAILED" in logs.stderr and "cause: " in logs.stderr
    assert "loss" in user.module("launcher", "logs", good["run_id"][:6]).stdout


def test_a_followed_run_is_requeued_then_cancelled(user: User, client: Client):
    (row,) = user.submit("long", *LONG)
    log = user.begin("launcher", "logs", row["run_id"], "-f")
    read_until(log, lambda line: "step " in line)
    assert user.rows("runs/long")[0]["state"] == "RUNNING"
    client("scontrol", "requeue", row["job_id"])
    read_until(log, lambda line: "continuing after step" in line)

    told = user.module("launcher", "cancel", "runs/long").stdout
    assert told.strip() == f"cancelled 1 of runs/long: {row['job_id']}"
    _, err = log.communicate(timeout=60)
    assert log.returncode == 0 and "is CANCELLED" in err
    (after,) = user.rows("runs/long")
    assert (after["state"], after["attempts"]) == ("CANCELLED", 2)
    assert "no job of theirs" in user.module("launcher", "cancel", row["run_id"]).stderr


def test_the_rank_that_was_killed_is_the_one_that_is_shown(user: User, cluster: Cluster):
    (row,) = user.submit("wide", *LONG, "hardware.nodes=2", "trainer.seed=7", "requeue.max_attempts=1")
    log = user.begin("launcher", "logs", row["run_id"], "-f")
    read_until(log, lambda line: "step " in line)
    _, second = user.rows("runs/wide")[0]["node"].replace("n[1-2]", "n1,n2").split(",")
    for process in cluster.processes():
        if process.kind == "task" and process.node == second:
            os.kill(process.pid, signal.SIGKILL)
    _, err = log.communicate(timeout=60)
    assert "is FAILED" in err
    told = user.module("launcher", "logs", row["job_id"])
    assert f"rank 1 on {second} failed first" in told.stderr and "cause: killed" in told.stderr
    assert "logs/rank" in told.stderr and told.stdout


def test_an_array_that_never_began_is_seen_waiting_and_cancelled(user: User, client: Client):
    later = "+hydra.launcher.additional_parameters.begin=now+1hour"
    rows = user.submit("later", later, "trainer.seed=0,1,2,3")
    assert [row["state"] for row in rows] == ["SUBMITTED"] * 4
    assert wait_until(lambda: [r["reason"] for r in user.rows("runs/later")] == ["BeginTime"] * 4, 20)
    assert user.rows("runs/later")[0]["start"]
    array = rows[0]["job_id"].partition("_")[0]
    assert "would cancel 1" in user.module("launcher", "cancel", f"{array}_2", "--dry-run").stdout
    user.module("launcher", "cancel", f"{array}_2")
    assert wait_until(lambda: [r["state"] for r in user.rows("runs/later")].count("CANCELLED") == 1, 20)
    client("scancel", array)  # not by us: Slurm's own word is what tells
    assert wait_until(lambda: {r["state"] for r in user.rows("runs/later")} == {"CANCELLED"}, 20)


def test_sacct_tells_what_squeue_has_forgotten(user: User, cluster: Cluster, client: Client):
    from launcher.slurm_cli import Slurm

    array = client("sbatch", "--parsable", "--begin=now+1hour", "--array=0-99:3", "--wrap", "true").strip()
    client("scancel", array)
    asked = Slurm(user.env)
    wanted = {f"{array}_{index}": "CANCELLED" for index in range(0, 100, 3)}
    assert wait_until(lambda: asked.history([array]) == wanted, 20)


def test_doctor_is_content_with_the_cluster_and_leaves_nothing(user: User, client: Client):
    found = json.loads(user.module("launcher", "doctor", "--json", timeout=120).stdout)
    verdicts = {finding["name"]: finding["verdict"] for finding in found}
    assert "fail" not in verdicts.values(), found
    for name in ("slurmctld", "test job", "shared folder", "clocks", "python", "all-reduce"):
        assert verdicts[name] == "ok", found
    assert client("squeue", "-h", "--name=seemore-doctor") == ""
    assert not list((user.folder / "runs").glob(".doctor*"))


def test_doctor_gives_up_a_job_that_does_not_start(user: User, client: Client):
    everything = client(
        "sbatch", "--parsable", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600"
    ).strip()
    assert wait_until(lambda: client("squeue", "-h", "-j", everything, "-o", "%T").strip() == "RUNNING", 30)
    told = user.module("launcher", "doctor", "--patience", "2").stdout
    client("scancel", everything)
    assert "did not start within 2 s" in told and "all-reduce" not in told
    assert client("squeue", "-h", "--name=seemore-doctor") == ""


def test_doctor_says_what_a_job_died_of(user: User):
    told = user.module("launcher", "doctor", "--nodes", "1", "--python", "/nope/python", code=1).stdout
    assert "fail  test job" in told and "/nope/python: No such file or directory" in told
