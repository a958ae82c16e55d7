"""``python -m slurm`` where no Slurm is needed: its words for what is wrong, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.errors import ClusterError
from slurm.layout import Layout
from slurm.processes import DAEMON_MARK, NODE_MARK, TASK, end, find, wait_until
from tests.conftest import REPOSITORY

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def slurm(tmp_path: Path) -> Run:
    """``slurm("up", …)``: the command with a home of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)} | environment
        words = [sys.executable, "-m", "slurm", *arguments]
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)

    return run


def one_line(answer: subprocess.CompletedProcess[str]) -> str:
    """The error that ``answer`` consists of."""
    assert answer.returncode == 1, answer.stderr
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    return answer.stderr


def test_without_slurm_one_line_says_how_to_install_it_and_nothing_is_left(slurm: Run, tmp_path: Path):
    line = one_line(slurm("up", "--dir", str(tmp_path / "c"), PATH=""))
    assert "Slurm is not installed" in line
    assert line.endswith("apt-get install slurm-wlm slurmdbd munge mariadb-server\n")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "words", [(), ("sideways",), ("up", "--nodes", "many"), ("preempt",), ("fail-node",), ("down", "--nodes", "1")]
)
def test_a_command_line_that_cannot_be_read_ends_with_usage(slurm: Run, words: tuple[str, ...]):
    answer = slurm(*words)
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("up", "--nodes", "0"), "--nodes 0: should be from 1 to 64"),
        (("up", "--dir", "a b"), "Slurm cannot read [' '] in a path"),
        (("preempt", "1"), "no cluster runs"),
        (("preempt", "one"), "'one': should be a number"),
        (("preempt", "1_x"), "'1_x': should be a number"),
        (("fail-node", "n1"), "no cluster was ever started"),
        (("restore-node", "n1"), "no cluster was ever started"),
    ],
)
def test_what_the_user_can_mend_is_one_line(slurm: Run, words: tuple[str, ...], told: str):
    assert told in one_line(slurm(*words))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path):
    photos = Cluster(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "cat.jpg").write_text("a cat")
    with pytest.raises(ClusterError, match="holds files that are not a cluster's"), photos.locked():
        pass
    assert not photos.down()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.jpg", "state"]


def test_a_damaged_description_is_named(slurm: Run, tmp_path: Path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "lock").touch()
    (tmp_path / "c" / "cluster.json").write_text("{")
    assert "cluster.json: cannot be read" in one_line(slurm("status", "--dir", str(tmp_path / "c")))


@pytest.mark.parametrize("command", ["down", "status"])
def test_where_nothing_runs_it_says_so(slurm: Run, command: str):
    answer = slurm(command)
    assert (answer.returncode, answer.stderr.count("\n") + answer.stdout.count("\n")) == (0, 1)


@pytest.fixture
def pretender(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A process that ignores SIGTERM, with an environment of the test's choice."""
    started: list[subprocess.Popen[bytes]] = []
    deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); sys.stdin.read()"

    def start(**environment: str) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", deaf], env=environment, **pipes))
        assert started[-1].stdout.readline() == b"deaf\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def test_only_what_the_cluster_started_is_found_and_ended(pretender, tmp_path: Path):
    ours, other = Layout(tmp_path / "a"), Layout(tmp_path / "b")
    conf = {"SLURM_CONF": str(ours.slurm_conf)}
    daemon = pretender(**conf, **{DAEMON_MARK: "slurmd", NODE_MARK: "n2"})
    task = pretender(**conf, **{NODE_MARK: "n1"})
    shell = pretender(**conf)
    stranger = pretender(SLURM_CONF=str(other.slurm_conf), **{NODE_MARK: "n1"})
    found = {(p.pid, p.kind, p.node) for p in find(ours)}
    assert found == {(daemon.pid, "slurmd", "n2"), (task.pid, TASK, "n1")}
    assert [p.pid for p in find(other)] == [stranger.pid]
    end(lambda: find(ours), grace_s=0.2)
    assert wait_until(lambda: daemon.poll() == task.poll() == -9, 10)
    assert shell.poll() is None
    assert stranger.poll() is None


def test_down_ends_what_a_crash_left_behind_and_forgets_its_state(slurm: Run, pretender, tmp_path: Path):
    layout = Layout((tmp_path / "c").resolve())
    layout.state.mkdir(parents=True)
    (layout.state / "job_state").touch()
    layout.run.mkdir()
    layout.pid_file("slurmctld").write_text(str(os.getpid()))  # stale: a stranger has that number now
    layout.logs.mkdir()
    layout.log("slurmctld").write_text("fatal: out of luck\n")
    for mark in (layout.lock, layout.spec):
        mark.touch()
    left = pretender(SLURM_CONF=str(layout.slurm_conf), **{DAEMON_MARK: "munged"})
    assert slurm("down", "--dir", str(layout.folder)).returncode == 0
    assert wait_until(lambda: left.poll() == -9, 10)
    assert not layout.state.exists()
    assert not layout.run.exists()
    assert layout.log("slurmctld").exists()


def test_down_ends_what_lives_although_its_folder_was_removed(pretender, tmp_path: Path):
    layout = Layout(tmp_path.resolve() / "gone")
    left = pretender(SLURM_CONF=str(layout.slurm_conf), **{DAEMON_MARK: "munged"})
    assert Cluster(layout.folder).down()
    assert wait_until(lambda: left.poll() == -9, 10)
