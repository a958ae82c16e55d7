"""Drills on a real Slurm: of the model, of a task that forgets something, and where requeues are forbidden."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.cluster import Cluster
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

TASK = (Path(__file__).parent / "forgetful_task.py").read_text()
VLM = ("task=vlm", "hardware.nodes=2", "hardware.device=cpu", "model=tiny", "data.count=64", "trainer.max_steps=40")
OURS = (
    "task.target=forgetful_task:train",
    "task.schema=forgetful_task:Config",
    "trainer.max_steps=40",
    "checkpoint=default",
)


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user of the shared cluster; no job of theirs is left."""
    user = User(cluster, tmp_path / "home")
    (user.home / "forgetful_task.py").write_text(TASK)
    yield user
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def planned(user: User, client: Client, name: str, *words: str) -> str:
    """The folder of a sweep of one run, which was cancelled as soon as it was submitted."""
    slurm = ("hydra/launcher=submitit_slurm", "site=disposable", "site.slurm_conf=null", "tracker=csv")
    done = user.type("launcher.run", *slurm, f"launch.name={name}", *words)
    assert done.returncode == 0, done.stderr
    client("scancel", done.stdout.split()[1])
    return f"runs/{name}"


def told(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """How a drill ended, what it found, and what it said on the way."""
    out, err = process.communicate(timeout=500)
    assert out, err
    return process.returncode, json.loads(out), err


def test_drills_of_the_model_of_a_forgetful_task_and_where_requeues_are_forbidden(user: User, client: Client):
    forbidden = "+hydra.launcher.additional_parameters.no-requeue=true"
    sweeps = [
        planned(user, client, "vlm", *VLM),
        planned(user, client, "forgetful", *OURS, "trainer.seed=666"),
        planned(user, client, "forbidden", *OURS, forbidden),
    ]
    before = {sweep: {path.name for path in (user.home / sweep).iterdir()} for sweep in sweeps}
    drills = [user.start("launcher", "drill", sweep, "--steps", "6", "--json") for sweep in sweeps]
    (code, found, said), (forgot_code, forgot, _), (again_code, again, again_said) = map(told, drills)

    # Two ranks on two nodes stop a step after the one in which they were asked; all of it is saved.
    assert (code, found["exact"], found["folder"]) == (0, True, None), (found, said)
    assert [row["event"] for row in found["rows"]] == ["started", "started", "warned", "killed"]
    warned, killed = found["rows"][2:]
    assert warned["redone"] == 0 and warned["saved_s"] >= 0 and killed["redone"] >= 1 and killed["saved_s"] is None
    assert all(row["queue_s"] is not None and row["start_up_s"] > 0 for row in found["rows"])

    assert (forgot_code, forgot["exact"]) == (1, False) and forgot["verdict"].startswith("not exact: after step 6 ")
    assert forgot["rows"][2]["redone"] == 0 and Path(forgot["folder"]).is_dir(), "what can be looked into stays"

    assert (again_code, again["exact"]) == (0, True), (again, again_said)
    assert again_said.count("Slurm may not requeue jobs here") == 1 and again_said.count("interrupted copy: job") >= 4
    left = {sweep: {path.name for path in (user.home / sweep).iterdir()} for sweep in sweeps}
    assert left == before | {"runs/forgetful": before["runs/forgetful"] | {"drills"}}
    assert not client("squeue", "--noheader")


def test_ctrl_c_cancels_the_copies(user: User, client: Client):
    sweep = planned(user, client, "stopped", *OURS)
    drill = user.start("launcher", "drill", sweep)
    assert wait_until(lambda: len(client("squeue", "--noheader").splitlines()) >= 2, 60)
    drill.send_signal(signal.SIGINT)
    out, err = drill.communicate(timeout=300)
    assert (drill.returncode, out) == (76, "") and "what the copies left: " in err and "Traceback" not in err
    assert not client("squeue", "--noheader", "--states=PENDING,RUNNING")
