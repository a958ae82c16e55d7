"""Packed members on this machine, as they are typed: real workers, and real signals to the command and to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.files import read_json_lines
from tests.integration.user import TASK
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.submission.test_same_command import TOY

pytestmark = pytest.mark.slow

PACKED = (
    "-m",
    "hydra/launcher=submitit_local",
    *TOY,
    "launch.pack=2",
    "launch.parallel=2",
    "trainer.max_steps=4",
    "checkpoint.every_steps=1",
)


class Repo:
    """A user's folder with a task; members of ``TASK`` stay in step 2 until ``go``."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "toytask.py").write_text(TASK)
        self.sweep = self.home / "runs" / "s"
        self.env = FakeSlurm(folder / "slurm").env
        paths = [p for p in sys.path if (Path(p) / "launcher").is_dir() or (Path(p) / "hydra_plugins").is_dir()]
        self.env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join([str(self.home), *paths])}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "launcher.run", *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.started.append(subprocess.Popen(line, cwd=self.home, env=self.env, **pipes))
        return self.started[-1]

    def end(self, command: subprocess.Popen[str]) -> tuple[int, str]:
        out, err = command.communicate(timeout=120)
        return command.returncode, out + err

    def type(self, *words: str) -> tuple[int, str]:
        return self.end(self.start(*words))

    def go(self) -> None:
        self.sweep.mkdir(parents=True, exist_ok=True)
        (self.sweep / "go").touch()

    def states(self) -> dict[int, str | None]:
        """By seed."""
        return {seed: _json(run / "status.json").get("state") for seed, run in self.runs().items()}

    def runs(self) -> dict[int, Path]:
        found = {_json(plan)["science"]["trainer"]["seed"]: plan.parent for plan in self.sweep.glob("*/plan.json")}
        return dict(sorted(found.items()))

    def steps(self, seed: int) -> list[int]:
        """Steps that were computed, in order."""
        return [int(line.split()[0]) for line in (self.runs()[seed] / "said.0").read_text().splitlines()]

    def starts(self, seed: int) -> list[dict[str, Any]]:
        events = read_json_lines(self.runs()[seed] / "attempts.jsonl")
        return [event for event in events if event["event"] == "start"]

    def wait_in_second_step(self, *seeds: int) -> None:
        """Until these have computed it."""
        until(
            lambda: all(
                (run / "said.0").exists() and 2 in self.steps(s) for s, run in self.runs().items() if s in seeds
            )
        )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def until(event: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(command: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers that a command has started."""
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    named = [(int(pid), Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")) for pid in children]
    return [pid for pid, words in named if b"launcher.runtime.pack.worker" in words]


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repo]:
    made = Repo(tmp_path)
    yield made
    for command in made.started:
        command.kill()
        command.communicate()


def test_members_share_workers_and_one_that_fails_touches_no_other(repo):
    repo.go()
    code, said = repo.type(*PACKED, "trainer.seed=1,2,13,4,5")
    assert code == 3 and "1 of 5 runs failed" in said and "Traceback" not in said, said
    assert repo.states() == {1: "COMPLETED", 2: "COMPLETED", 4: "COMPLETED", 5: "COMPLETED", 13: "FAILED"}
    assert all(repo.steps(seed) == [1, 2, 3, 4] for seed in (1, 2, 4, 5))
    jobs = {start["job_id"] for seed in repo.runs() for start in repo.starts(seed)}
    assert len(jobs) == 2, "two workers"
    assert not list(repo.sweep.glob("*/loss_curve.png"))
    code, said = repo.type(*PACKED, "trainer.seed=1,2,4,5")
    assert code == 0 and "4 COMPLETED: are done" in said
    assert all(len(repo.starts(seed)) == 1 for seed in (1, 2, 4, 5))


def test_workers_that_cannot_even_begin_are_a_failure_and_no_stop(repo):
    code, said = repo.type(*PACKED, "trainer.seed=1,2,3", "site.python=/bin/false")
    assert code == 1 and "3 of 3 runs failed" in said and "did not even begin" in said, said
    assert "stopped" not in said and set(repo.states().values()) == {None}


def test_ctrl_c_saves_and_the_same_command_goes_on_without_a_step_done_again(repo):
    command = repo.start(*PACKED, "trainer.seed=1,2,3,4")
    until(lambda: len(repo.runs()) == 4)
    repo.wait_in_second_step(1, 2)
    command.send_signal(signal.SIGINT)
    code, said = repo.end(command)
    assert code == 75 and "the runs of 2 workers save first" in said
    assert "2 runs stopped, 2 not begun; the same command goes on" in said
    assert sorted(filter(None, repo.states().values())) == ["PREEMPTED"] * 2
    repo.go()
    code, said = repo.type(*PACKED, "trainer.seed=1,2,3,4")
    assert code == 0, said
    assert set(repo.states().values()) == {"COMPLETED"}
    assert all(repo.steps(seed) == [1, 2, 3, 4] for seed in (1, 2, 3, 4))


def test_a_worker_that_is_killed_is_started_again_and_its_member_goes_on(repo):
    command = repo.start(*PACKED, "trainer.seed=1,2,3")
    until(lambda: len(repo.runs()) == 3)
    repo.wait_in_second_step(1, 2)
    os.kill(workers(command)[0], signal.SIGKILL)
    until(lambda: "PREEMPTED" in repo.states().values() or any(len(repo.starts(s)) > 1 for s in (1, 2)))
    repo.go()
    code, said = repo.end(command)
    assert code == 0 and "a worker ended (broke down: a rank was killed (SIGKILL)); started again" in said, said
    assert set(repo.states().values()) == {"COMPLETED"}
    assert all(repo.steps(seed) == [1, 2, 3, 4] for seed in (1, 2, 3)), "it saved when its worker was gone"


def test_a_second_ctrl_c_kills_and_no_run_seems_to_go_on(repo):
    command = repo.start(*PACKED, "trainer.seed=1,2")
    until(lambda: len(repo.runs()) == 2)
    repo.wait_in_second_step(1)
    members = [int(pid) for worker in workers(command) for pid in _children(worker)]
    for pid in members:
        os.kill(pid, signal.SIGSTOP)  # deaf
    assert len(members) == 1, "one worker shares two"
    command.send_signal(signal.SIGINT)
    until(lambda: "save first" in command.stderr.readline())
    command.send_signal(signal.SIGINT)
    assert repo.end(command)[0] == 76
    assert not any(_lives(pid) for pid in members)
    assert "RUNNING" not in repo.states().values() and "PREEMPTED" in repo.states().values()


def _lives(pid: int) -> bool:
    """Whether it is there and no zombie, which somebody else has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hydra/launcher=submitit_local", "launch.beside=2"), "launch.pack"),
        (("launch.pack=2",), "launch.pack=2: is for jobs that share members, and hydra/launcher=basic has none"),
        (("-m", "launch.pack=2", "trainer.seed=1,2"), "choose hydra/launcher=submitit_local"),
        (("-m", "hydra/launcher=submitit_local", "launch.pack=0"), "launch.pack"),
    ],
)
def test_what_cannot_be_packed_is_told_in_one_line_and_nothing_is_written(repo, words, said):
    code, text = repo.type(*words, *TOY)
    assert code == 1 and said in text and text.count("\n") == 1, text
    assert not repo.sweep.exists()


def test_a_dry_run_shows_how_many_jobs_share_the_runs(repo):
    code, said = repo.type("-m", "hydra/launcher=submitit_slurm", *TOY, "launch.pack=2", "trainer.seed=1,2,3,4,5",
                           "launch.dry_run=true")  # fmt: skip
    assert code == 0 and "# 5 runs like this, shared by 3 jobs:" in said and "--array=0-2%" in said, said
    assert "launcher.runtime.pack.worker" in said
