"""The example of a task of one's own: short, as the README shows it, naming nothing but the session; and it learns."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, type_here

EXAMPLE = Path(__file__).parent / "own_task"
FILES = ("spirals.py", "conf/task/spirals.yaml")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of somebody else, with the example in it and a package ``conf`` of its own."""
    folder = tmp_path / "project"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conf" / "__init__.py").touch()
    return folder


@pytest.mark.parametrize("name", FILES)
def test_the_readme_shows_the_example_word_for_word(name):
    assert (EXAMPLE / name).read_text().rstrip() in (REPOSITORY / "README.md").read_text()


def test_the_example_names_no_scheduler_and_is_short():
    text = "".join((EXAMPLE / name).read_text() for name in FILES)
    assert not re.search("slurm|submitit|hydra", text, re.IGNORECASE)
    lines = [line for line in (EXAMPLE / "spirals.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 45


def test_it_learns_as_one_run_and_as_packed_members(project):
    env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(project.parent / "cache")}

    def typed(*words: str) -> str:
        command = [sys.executable, "-m", "launcher.run", *words, "task=spirals", "steps=600", "log_every=100"]
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    typed()
    (summary,) = project.glob("runs/spirals/*/summary.json")
    alone = json.loads(summary.read_text())
    assert alone["accuracy"] > 0.7 and alone["step"] == 600
    typed("-m", "hydra/launcher=submitit_local", "launch.pack=2", "seed=0,1", "launch.name=packed")
    members = [json.loads(path.read_text()) for path in project.glob("runs/packed/*/summary.json")]
    assert alone["weights_sha256"] in {member["weights_sha256"] for member in members} and len(members) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task=spirls",), "task=spirls: there is no such option; did you mean 'spirals'?"),
        (("task=spirals", "stesp=3"), "unknown key 'stesp'; did you mean 'steps'?"),
        (("task=spirals", "model=tiny"), "model"),
        (("task=spirals", "task.execution=[log]"), "task.execution: the config has no key 'log'"),
        (("task=spirals", "task.target=spirals:trian"), "task.target='spirals:trian': module spirals has no trian"),
        (("task=python",), "task.target: has no value, and needs one: task.target=…"),
    ],
)
def test_wrong_words_end_in_a_line_and_leave_nothing(project, words, message):
    done = type_here(project, os.environ, *words)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (project / "runs").exists()
