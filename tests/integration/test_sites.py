"""A site's container, variables, secrets and scratch on a real Slurm; Apptainer is a program that checks its words."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.cluster import Cluster
from slurm.faults import show_job
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import BASE, User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

MARKER = "marker-4711-of-a-secret"
# Proves what it was given, and does all that a careless task does with a secret.
TASK = """
import hashlib
import json
import logging
import os

from toytask import Config
from toytask import train as train_toy


def train(session):
    token, scratch = os.environ["LAB_TOKEN"], os.environ["LAUNCHER_SCRATCH"]
    proof = {
        "token": hashlib.sha256(token.encode()).hexdigest(), "greeting": os.environ["GREETING"],
        "scratch": scratch, "scratch_is_there": os.path.isdir(scratch), "image": os.environ.get("APPTAINER_CONTAINER"),
    }
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    (session.rundir.path / f"proof.{restarts}").write_text(json.dumps(proof))
    print("the token is", token, flush=True)
    logging.getLogger("sitetask").warning("the token is %s", token)
    if session.config.trainer["seed"] == 7:
        raise RuntimeError(f"the token {token} was refused")
    train_toy(session)
"""
APPTAINER = """#!{python}
import json, os, sys

words, binds, options = sys.argv[1:], [], []
assert words.pop(0) == "exec"
while words[0].startswith("--"):
    option = words.pop(0)
    options.append(option)
    if option == "--bind":
        binds.append(words.pop(0).split(":"))
    elif option == "--pwd":
        place = words.pop(0)
image, command = words[0], words[1:]
for source, target, *how in binds:
    if not os.path.exists(source):
        sys.exit(f"FATAL: mount source {{source}} doesn't exist")
hidden = [word for word in [place, *command] if word.startswith("/")
          and not any(word.startswith(target) for _, target, *how in binds)]
with open(__file__ + ".calls", "a") as file:
    print(json.dumps([image, options, binds, command, hidden]), file=file)
os.chdir(place)
os.environ["APPTAINER_CONTAINER"] = image
os.environ["PATH"] = {bin!r} + ":" + os.environ["PATH"]
os.execvp(command[0], command)
"""
WORDS = ("task.target=sitetask:train", "task.schema=toytask:Config", "site=lab", *BASE[3:])


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user with a site of their own, and Apptainer on PATH; no job of theirs is left."""
    user = User(cluster, tmp_path / "home")
    (user.home / "sitetask.py").write_text(TASK)
    user.env["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    yield user
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def write_site(user: User, text: str) -> None:
    folder = Path(user.env["XDG_CONFIG_HOME"]) / "seemore" / "site"
    folder.mkdir(parents=True)
    (folder / "lab.yaml").write_text(text)


def install_apptainer(folder: Path, user: User) -> Path:
    """On the user's PATH; returns the file of its calls."""
    program = folder / "bin" / "apptainer"
    program.parent.mkdir()
    here = Path(sys.executable)
    program.write_text(APPTAINER.format(python=here, bin=str(here.parent)))
    program.chmod(0o755)
    user.env["PATH"] = f"{program.parent}:/usr/bin:/bin"
    return program.with_name("apptainer.calls")


def proofs(user: User, number: int) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(user.sweep.glob(f"*/proof.{number}"))]


def holds_marker(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if MARKER.encode() in path.read_bytes()]


def test_a_job_in_a_container_has_its_secret_through_a_requeue_and_no_file_shows_it(
    user: User, client: Client, tmp_path: Path, cluster: Cluster
):
    calls = install_apptainer(tmp_path, user)
    image = tmp_path / "torch.sif"
    image.touch()
    write_site(
        user,
        f"env: {{GREETING: it's $HOME}}\nsecrets: {{LAB_TOKEN: {MARKER}}}\nscratch: {tmp_path}/disk/$SLURM_JOB_ID\n"
        f"container: {{image: {image}, mounts: ['{tmp_path}/config:/data:ro']}}\n",
    )
    hardware = ("hardware.gpus_per_node=1", "hardware.device=cpu")
    words = ("hydra/launcher=submitit_slurm", *WORDS, *hardware, "requeue.max_without_progress=1")
    done = user.type("launcher.run", "-m", *words, "trainer.seed=0,7")
    assert done.returncode == 0, done.stdout + done.stderr
    (array,) = user.job_ids()
    assert wait_until(lambda: len(user.said()) >= 2, 60), list(user.sweep.rglob("*.err"))
    client("scancel", "--signal=USR2", f"{array}_0")
    assert wait_until(lambda: show_job(user.cluster, f"{array}_0").restarts == 1, 60)
    user.let_go()
    user.wait()
    user.wait(("FAILED",))
    shown = {"token": hashlib.sha256(MARKER.encode()).hexdigest(), "greeting": "it's $HOME", "image": str(image),
             "scratch_is_there": True}  # fmt: skip
    assert len(proofs(user, 0)) == 2 and len(proofs(user, 1)) == 1, "in each element, and after a requeue"
    for proof in (*proofs(user, 0), *proofs(user, 1)):
        assert shown.items() <= proof.items() and proof["scratch"].startswith(f"{tmp_path}/disk/")
    called = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [call[1].count("--nv") for call in called] == [1] * 3 and all(call[-1] == [] for call in called)
    assert all([f"{tmp_path}/config", "/data", "ro"] in call[2] for call in called)
    failed = next(run for run in user.runs().values() if run["state"] == "FAILED")
    assert "the token <redacted> was refused" in failed["reason"]
    printed = "".join(path.read_text() for path in user.sweep.rglob("*_log.out"))
    assert printed.count("the token is <redacted>") == 3
    assert holds_marker(user.home) == []
    scripts = [path for path in cluster.layout.folder.rglob("*script*") if path.is_file()]
    assert not [path for path in scripts if MARKER.encode() in path.read_bytes()]
    assert MARKER not in client("sacct", "-n", "-P", "-j", array, "-o", "SubmitLine,JobName,Comment")
    assert MARKER not in client("scontrol", "show", "job", array) and MARKER not in done.stdout + done.stderr


def test_a_job_has_its_secret_where_sbatch_exports_nothing_else(user: User, tmp_path: Path):
    write_site(user, f"env: {{GREETING: hello}}\nsecrets: {{LAB_TOKEN: {MARKER}}}\nscratch: {tmp_path}/disk\n")
    user.env |= {"SBATCH_EXPORT": "NONE", "UNWANTED": "yes"}
    done = user.type("launcher.run", "hydra/launcher=submitit_slurm", *WORDS, "trainer.max_steps=1")
    assert done.returncode == 0, done.stdout + done.stderr
    user.wait()
    (proof,) = proofs(user, 0)
    assert proof["token"] == hashlib.sha256(MARKER.encode()).hexdigest() and proof["greeting"] == "hello"
    assert holds_marker(user.home) == []


def test_doctor_drafts_a_site_that_can_be_chosen_at_once(user: User):
    done = user.type("launcher", "doctor", "--write-site", "drafted", "--nodes", "2")
    path = Path(user.env["XDG_CONFIG_HOME"]) / "seemore" / "site" / "drafted.yaml"
    assert done.returncode == 0 and f"wrote {path}" in done.stderr, done.stdout + done.stderr
    text = path.read_text()
    print(text)
    site = yaml.safe_load(text)
    assert site["partition"] == "low" and site["slurm_conf"] == str(user.cluster.slurm_conf)
    assert site["python"] == sys.executable and "the test job ran it on n1, n2: Python 3." in text
    assert "GPUs have no types" in text and "# interface:" in text, "all nodes stand on this machine"
    words = ("hydra/launcher=submitit_slurm", *WORDS, "site=drafted", "launch.dry_run=true")
    shown = user.type("launcher.run", *(word for word in words if word != "site=lab"))
    assert shown.returncode == 0 and "#SBATCH --partition=low" in shown.stdout, shown.stderr
    again = user.type("launcher", "doctor", "--write-site", "drafted", "--no-job")
    assert again.returncode == 1 and "stays as it is" in again.stderr and path.read_text() == text
