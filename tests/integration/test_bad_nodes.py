"""Nodes that are bad on purpose: the run is tried elsewhere, and says which node it avoids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.cluster import Cluster
from slurm.faults import show_job
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

# Imported by every Python of a job, as the setup lines of its site say: what the system does to it on a node is told
# by files beside it.
FAULTS = """
import errno, os, signal, time
from pathlib import Path

_fsync, _node = os.fsync, os.environ.get("SLURMD_NODENAME", "")


def _is(fault):
    return "SLURM_STEP_ID" in os.environ and (Path(__file__).parent / f"{fault}.{_node}").exists()


def fsync(descriptor):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
    if name.startswith(".preflight-") and _is("broken"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    while name.startswith(".preflight-") and _is("hangs"):
        time.sleep(0.1)
    if name.startswith(".preflight-") and _is("kills"):
        os.kill(os.getpid(), signal.SIGKILL)
    _fsync(descriptor)


os.fsync = fsync
"""


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user of the shared cluster; no job of theirs is left."""
    yield User(cluster, tmp_path / "home")
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """The folder whose files make nodes bad."""
    folder = tmp_path / "faults"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FAULTS)
    return folder


def submit(user: User, faults: Path, *overrides: str, single: bool = True) -> str:
    """What ``overrides`` ask for, with Pythons that obey ``faults``; the newest job."""
    user.submit(f"site.setup=['export PYTHONPATH={faults}']", *overrides, single=single)
    return user.job_ids()[-1]


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for line in path.read_text().splitlines() if (event := json.loads(line))["event"] == kind]


def status(user: User) -> list[dict[str, Any]]:
    """What ``launcher status`` says of each run."""
    return json.loads(user.type("launcher", "status", "runs/sweep", "--json").stdout)


def test_a_node_that_cannot_write_is_left_by_both_elements_of_an_array(user: User, client: Client, faults: Path):
    (faults / "broken.n1").touch()
    array = submit(user, faults, "trainer.max_steps=1", "trainer.seed=1,2", single=False)
    user.wait(count=2, seconds=120)
    for index, path in enumerate(sorted(user.sweep.glob("*/attempts.jsonl"))):
        (requeue,), (excluded,) = events(path, "requeue"), events(path, "exclude")
        assert requeue["node"] == excluded["node"] == "n1" and requeue["reason"] == excluded["reason"]
        assert "node n1 did not pass the preflight: writing" in requeue["reason"], requeue
        assert requeue["reason"].endswith("Input/output error")
        first, last = events(path, "start")
        assert (first["hosts"], first["step"]) == (["n1"], None) and last["hosts"] != ["n1"]
        assert "ExcNodeList=n1 " in client("scontrol", "show", "job", "--oneliner", f"{array}_{index}")
        assert "this run avoids n1: broke down: rank 0 on n1" in (path.parent / "logs" / "rank0.log").read_text()
        assert not list(path.parent.glob(".preflight-*"))
    assert [[one["node"] for one in row["excluded"]] for row in status(user)] == [["n1"], ["n1"]]
    table = user.type("launcher", "status", "runs/sweep").stdout.splitlines()
    assert "avoids" in table[0] and table[1].count("n1") == 1


def test_a_rank_that_hangs_is_named_and_a_same_command_keeps_off_its_node(user: User, client: Client, faults: Path):
    (faults / "hangs.n2").touch()
    words = ("hardware.nodes=2", "preflight.deadline_s=6")
    job = submit(user, faults, *words)
    assert wait_until(lambda: "REQUEUED" in [run.get("state") for run in user.runs().values()], 120)
    told = user.type("launcher", "logs", job)
    assert "rank 1 on n2 failed first" in told.stderr and "cause: node n2 did not pass the preflight" in told.stderr
    assert wait_until(lambda: len(user.said()) >= 2, 90)
    (path,) = user.sweep.glob("*/attempts.jsonl")
    (excluded,) = events(path, "exclude")
    assert excluded["node"] == "n2" and "writing" in excluded["reason"] and "within 6 s" in excluded["reason"]
    assert "n2" not in events(path, "start")[-1]["hosts"]
    client("scancel", job)
    assert wait_until(lambda: show_job(user.cluster, job).state == "CANCELLED", 60)
    user.let_go()
    again = submit(user, faults, *words)
    user.wait()
    assert again != job and show_job(user.cluster, again).restarts == 0
    assert "ExcNodeList=n2 " in client("scontrol", "show", "job", "--oneliner", again)


def test_a_node_on_which_ranks_are_killed_twice_in_a_row_is_left(user: User, client: Client, faults: Path):
    (faults / "kills.n2").touch()
    job = submit(user, faults, "hardware.nodes=2", "trainer.max_steps=1")
    user.wait(seconds=180)
    (path,) = user.sweep.glob("*/attempts.jsonl")
    why = "broke down: a rank was killed (SIGKILL)"
    assert [(event["node"], event["reason"]) for event in events(path, "requeue")] == [("n2", why)] * 2
    (excluded,) = events(path, "exclude")
    assert (excluded["node"], excluded["reason"]) == ("n2", f"the run broke down there twice in a row: {why}")
    assert "n2" not in events(path, "start")[-1]["hosts"]
    assert "ExcNodeList=n2 " in client("scontrol", "show", "job", "--oneliner", job)
