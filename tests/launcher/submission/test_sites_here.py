"""A site's variables and secrets in runs of this machine: in this process, in a queue, and packed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.launcher.submission.test_local_pack import Repo
from tests.launcher.submission.test_same_command import TOY

pytestmark = pytest.mark.slow

SECRET = "marker-of-a-secret"
TASK = """
import hashlib
import os
from toytask import Config


def train(session):
    token = os.environ["LAB_TOKEN"]
    digest = hashlib.sha256(token.encode()).hexdigest()
    proof = f'{digest} {os.environ["GREETING"]} {os.environ["LAUNCHER_SCRATCH"]}'
    (session.rundir.path / "proof").write_text(proof)
    print("the token is", token, flush=True)
    raise ValueError(f"the token {token} was refused")
"""
LAUNCHERS = {
    "in this process": (),
    "in a queue": ("hydra/launcher=submitit_local",),
    "packed": ("hydra/launcher=submitit_local", "launch.pack=1"),
}


@pytest.mark.parametrize("how", LAUNCHERS)
def test_a_run_of_this_machine_has_what_its_site_says_and_shows_no_secret(tmp_path: Path, how: str):
    repo = Repo(tmp_path)
    (repo.home / "sitetask.py").write_text(TASK)
    site = tmp_path / "config" / "seemore" / "site" / "lab.yaml"
    site.parent.mkdir(parents=True)
    site.write_text(f"env: {{GREETING: hello}}\nsecrets: {{LAB_TOKEN: {SECRET}}}\nscratch: {tmp_path}/$DISK\n")
    repo.env |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "DISK": "disk"}
    words = ("task.target=sitetask:train", *TOY[1:], "site=lab", "requeue.max_without_progress=1")
    code, said = repo.type("-m", *words, *LAUNCHERS[how])
    assert code in (1, 3, 70) and "the token <redacted> was refused" in said, said
    (run,) = (path.parent for path in repo.sweep.glob("*/plan.json"))
    assert SECRET not in said
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    assert (run / "proof").read_text() == f"{digest} hello {tmp_path}/disk"
    assert "<redacted>" in json.loads((run / "status.json").read_text())["reason"]
    files = [path for path in repo.home.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
