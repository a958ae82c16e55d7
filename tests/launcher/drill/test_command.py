"""``python -m launcher drill``: what it refuses, and a whole drill of processes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.runtime.sweepdir import SweepDir
from tests.conftest import REPOSITORY, type_here
from tests.launcher.fake_slurm import FakeSlurm

TOY = ("task.target=forgetful_task:train", "task.schema=forgetful_task:Config", "tracker=none", "launch.name=demo")
TASK = (REPOSITORY / "tests" / "integration" / "forgetful_task.py").read_text()


class Home:
    """A user's folder with a task and one run of it in it; a fake Slurm on PATH."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home"
        self.path.mkdir()
        (self.path / "forgetful_task.py").write_text(TASK)
        slurm = FakeSlurm(folder / "slurm")
        self.env = slurm.env | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}

    def run(self, *words: str) -> SweepDir:
        """``python -m launcher.run``; the sweep."""
        done = type_here(self.path, self.env, *TOY, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return SweepDir(self.path / "runs" / "demo")

    def drill(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``python -m launcher drill``, typed beside."""
        done = type_here(self.path.parent, self.env, "drill", *words, door="launcher.__main__")
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def refusal(self, *words: str) -> str:
        """The one line that a drill is refused with."""
        done = self.drill(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stdout + done.stderr
        return done.stderr


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_what_cannot_be_drilled(home, tmp_path):
    slurm = ("hydra/launcher=submitit_slurm", "site=default")
    sweep = home.run(*slurm)
    run = str(home.path / "runs" / "demo" / sweep.list_runs()[0])
    assert "no run or job" in home.refusal("nothing")
    assert "there is no such folder" in home.refusal("runs/nothing")
    assert "--steps 2: two interruptions take at least 3 steps" in home.refusal(run, "--steps", "2")
    (home.path / "forgetful_task.py").write_text(TASK.replace("optim: dict[str, Any]", "optim: int"))
    assert "optim" in home.refusal(run)
    (home.path / "forgetful_task.py").unlink()
    assert "there is no module forgetful_task" in home.refusal(run)
    assert not sweep.drills.exists()


def test_a_run_that_saves_nothing_on_its_way(home):
    sweep = home.run("hydra/launcher=submitit_slurm", "site=default", "checkpoint=off")
    assert "checkpoint.every_steps=null: this run saves nothing" in home.refusal(str(sweep.path))
    assert not sweep.drills.exists()


@pytest.mark.slow
def test_a_drill_of_processes_on_this_machine(home):
    words = ("trainer.max_steps=40", "hardware=cpu")
    typed = [sys.executable, "-m", "launcher.run", *TOY, *words]
    subprocess.run(typed, cwd=home.path, env=home.env, check=True, capture_output=True)
    sweep = SweepDir(home.path / "runs" / "demo")
    before = sorted(path.name for path in sweep.path.rglob("*"))
    done = home.drill(str(sweep.path), "--steps", "6", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exact"], found["folder"]) == (0, True, None), done.stderr
    assert [(row["event"], row["redone"]) for row in found["rows"]] == [
        ("started", None), ("started", None), ("warned", 0), ("killed", 2),
    ]  # fmt: skip
    assert all(row["start_up_s"] > 0 and row["queue_s"] >= 0 for row in found["rows"])
    assert sorted(path.name for path in sweep.path.rglob("*")) == before, "it leaves nothing"
