"""The same command again, as it is typed, with each of the three launchers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.runtime.files import read_json_lines
from tests.integration.user import TASK
from tests.launcher.fake_slurm import FakeSlurm

TOY = (
    "task.target=toytask:train",
    "task.schema=toytask:Config",
    "tracker=none",
    "trainer.max_steps=1",
    "launch.name=s",
)
LAUNCHERS = {
    "slurm": ("hydra/launcher=submitit_slurm", 0),
    "local": ("hydra/launcher=submitit_local", 1),
    "basic": ("hydra/launcher=basic", 1),
}
"""The word for each, and how a command ends that leaves a FAILED run as it is."""


class Repo:
    """A user's folder with a task, and what their commands leave in ``runs/s``."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "toytask.py").write_text(TASK)
        self.slurm = FakeSlurm(folder / "slurm", at_once=True)
        self.sweep = self.home / "runs" / "s"

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = self.slurm.env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{self.home}:{self.slurm.env['PYTHONPATH']}"}
        line = [sys.executable, "-m", "launcher.run", *words]
        return subprocess.run(line, cwd=self.home, env=env, capture_output=True, text=True, check=False)

    def starts(self) -> dict[int, int]:
        """How often the run of each seed was started."""
        found = {}
        for plan in self.sweep.glob("*/plan.json"):
            events = read_json_lines(plan.with_name("attempts.jsonl"))
            seed = json.loads(plan.read_text())["science"]["trainer"]["seed"]
            found[seed] = sum(event["event"] == "start" for event in events)
        return dict(sorted(found.items()))


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    paths = [path for path in sys.path if (Path(path) / "launcher").is_dir() or (Path(path) / "hydra_plugins").is_dir()]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    return Repo(tmp_path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_extending_a_grid_runs_what_is_new_and_what_failed_only_where_it_is_asked_for(repo, launcher):
    word, left = LAUNCHERS[launcher]
    first = repo.type("-m", word, *TOY, "trainer.seed=1,2,666")
    assert "Traceback" not in first.stderr
    assert repo.starts() == {1: 1, 2: 1, 666: 1}
    again = repo.type("-m", word, *TOY, "trainer.seed=1,2,666,4,5")
    assert again.returncode == left, again.stderr
    assert repo.starts() == {1: 1, 2: 1, 4: 1, 5: 1, 666: 1}
    assert "launch.retry=failed" in again.stderr and "bad luck" in again.stderr
    assert again.stderr.startswith("2 PLANNED: begin\n"), again.stderr
    assert "1 FAILED: are left as they are" in again.stderr and "2 COMPLETED: are done" in again.stderr
    asked = repo.type("-m", word, *TOY, "trainer.seed=1,2,666,4,5", "launch.retry=failed")
    assert repo.starts() == {1: 1, 2: 1, 4: 1, 5: 1, 666: 2}, asked.stderr


def test_a_run_that_is_typed_alone_is_run_again_where_it_failed(repo):
    for times in (1, 2):
        assert repo.type(*TOY, "trainer.seed=666").returncode == 1
        assert repo.starts() == {666: times}
    for times in (3, 4):
        assert repo.type("hardware=slurm", *TOY, "trainer.seed=666").returncode == 0
        assert repo.starts() == {666: times}


def test_code_that_changed_is_told_and_asked_for_makes_runs_anew(repo):
    word = "hydra/launcher=submitit_slurm"
    repo.type("-m", word, *TOY, "trainer.seed=1,2")
    (repo.home / "toytask.py").write_text(TASK.replace("first", "second"))
    told = repo.type("-m", word, *TOY, "trainer.seed=1,2")
    assert "2 COMPLETED: are done, 2 of them made by other code (launch.retry=stale makes them anew)" in told.stderr
    assert repo.slurm.submitted == [2]
    shown = repo.type("-m", word, *TOY, "trainer.seed=1,2", "launch.retry=stale", "launch.dry_run=true")
    assert shown.stdout.count(" anew ") == 2 and not (repo.sweep / "replaced").exists()
    anew = repo.type("-m", word, *TOY, "trainer.seed=1,2", "launch.retry=stale")
    assert "2 submitted" in anew.stderr and repo.starts() == {1: 1, 2: 1}
    words = [file.read_text().split()[1] for file in repo.sweep.glob("*/said.0")]
    kept = [file.read_text().split()[1] for file in (repo.sweep / "replaced").glob("*/said.0")]
    assert words == ["second"] * 2 and kept == ["first"] * 2
    here = repo.type("-m", *TOY, "trainer.seed=1,2", "launch.retry=stale")
    assert here.stdout.count("COMPLETED already") == 2, here.stderr
