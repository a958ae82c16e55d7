"""From the words of a command to a queue, and back: receipts, metrics, dry runs, code that stays what it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hydra_plugins.seemore import QueueLauncher
from hydra_plugins.seemore._queues import register

from launcher import slurm_cli
from launcher.members import Composer, Member, complete_members
from launcher.runtime.errors import RunsNotDone, UserError
from launcher.slurm_cli import SlurmAway
from launcher.submission import waiting
from launcher.submission.dispatch import dispatch
from launcher.submission.goal import Goal
from tests.conftest import type_here
from tests.integration.user import TASK
from tests.launcher.fake_slurm import FakeSlurm

TOY = ("task.target=toytask:train", "task.schema=toytask:Config", "tracker=none", "trainer.max_steps=1")
SLURM = (*TOY, "hardware=slurm")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None) -> Iterator[Path]:
    """A user's repository, in which commands are typed; the launcher is installed elsewhere."""
    folder = tmp_path / "my repo"
    folder.mkdir()
    (folder / "toytask.py").write_text(TASK)
    (folder / ".gitignore").write_text("runs/\n__pycache__/\n")
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=u", "-c", "user.email=e", "commit", "-qm", "one")):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(slurm_cli, "_PAUSES_S", (0.0,) * 4)
    monkeypatch.setattr(waiting, "_POLL_S", (0.01,))
    yield folder
    sys.modules.pop("toytask", None)


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def compose() -> Iterator[Callable[..., list[Member]]]:
    """``compose([overrides of a member], …)``: completed members, as the sweeper makes them."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN)

        def composed(*grid: list[str], varying: tuple[str, ...] = ("optim.lr",)) -> list[Member]:
            return complete_members([list(words) for words in grid], varying, Composer(hydra.config_loader, master))

        composed.loader, composed.master = hydra.config_loader, master  # type: ignore[attr-defined]
        yield composed


def grid(*words: str, lrs: tuple[str, ...] = ("0.25", "0.5")) -> list[list[str]]:
    return [[*SLURM, *words, f"optim.lr={lr}"] for lr in lrs]


def sweep_of(repo: Path) -> Path:
    (sweep,) = (repo / "runs").iterdir()
    return sweep


def tree(folder: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in p.parts}


def test_a_sweep_is_submitted_with_receipts_and_everything_on_disk(repo, slurm, compose, capfd):
    ids = dispatch(compose(*grid()), slurm.env, repo)
    assert ids == ["100_0", "100_1"]
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["SUBMITTED", "100_0"], ["SUBMITTED", "100_1"]]
    assert "optim.lr=0.25" in out and "task.target" not in out
    assert "2 submitted" in err and "python -m launcher status" in err
    sweep = sweep_of(repo)
    (submission,) = (sweep / "submissions").glob("*.jsonl")
    plans = [json.loads(line) for line in submission.read_text().splitlines()]
    assert [plan["science"]["optim"]["lr"] for plan in plans] == [0.25, 0.5]
    (code,) = (sweep / "code").iterdir()
    for plan in plans:
        assert plan["code"] == code.name and plan["root"] == str(repo / "runs") and plan["created"]
        assert json.loads((sweep / plan["run_id"] / "plan.json").read_text()) == plan
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True, check=True)
        assert plan["environment"]["git_sha"] == commit.stdout.strip() and plan["environment"]["packages"]
    assert (code / "toytask.py").exists() and (code / ".packages/launcher/runtime/worker.py").exists()
    again = dispatch(compose(*grid(lrs=("0.25", "0.5", "0.75"))), slurm.env, repo)
    assert again == ["100_0", "100_1", "101"], "extending the grid extends the sweep"
    assert len((sweep / "members.jsonl").read_text().splitlines()) == 3
    assert len(json.loads((sweep / "sweep.json").read_text())["requests"]) == 2


def test_jobs_run_the_code_and_the_config_that_were_submitted(repo, slurm, compose):
    dispatch(compose([*SLURM, "optim.lr=0.25", "hardware.tasks_per_node=2"]), slurm.env, repo)
    (repo / "toytask.py").write_text("raise RuntimeError('an edit leaked')\n")
    slurm.run()
    assert [job["states"] for job in slurm.state["jobs"].values()] == [["COMPLETED"]]
    for rank in range(2):
        (said,) = sweep_of(repo).glob(f"*/said.{rank}")
        assert said.read_text().split()[:3] == ["1", "first", "0.25"]
    (status,) = sweep_of(repo).glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "COMPLETED"


def test_waiting_gives_metrics_and_a_failed_run_is_an_error(repo, slurm, compose, capfd):
    slurm.set(at_once=True)
    assert dispatch(compose([*SLURM, "launch.wait=true"]), slurm.env, repo) == [1.0]
    assert "1 COMPLETED" in capfd.readouterr().err
    with pytest.raises(RunsNotDone, match=r"1 of 1 runs are not done.*is FAILED: .*bad luck") as caught:
        dispatch(compose([*SLURM, "launch.wait=true", "trainer.seed=666"]), slurm.env, repo)
    assert caught.value.code == 1
    assert [job["states"] for job in slurm.state["jobs"].values()][-1] == ["FAILED"]


def test_waiting_for_a_named_sweep_gives_its_metric(repo, slurm, compose):
    slurm.set(at_once=True)
    (repo / "runs" / "named").mkdir(parents=True)
    (repo / "runs" / "named" / "go").touch()  # the task waits for it
    members = compose([*SLURM, "launch.wait=true", "launch.name=named", "trainer.max_steps=3"])
    assert dispatch(members, slurm.env, repo, goal=Goal("step", "maximize", "named")) == [3.0]
    (request,) = json.loads((sweep_of(repo) / "sweep.json").read_text())["requests"]
    assert (request["metric"], request["direction"], request["sweep"]) == ("step", "maximize", "named")


def test_a_controller_that_goes_away_does_not_end_the_waiting(repo, slurm, compose, capfd, monkeypatch):
    slurm.set(at_once=True)
    members = compose([*SLURM, "launch.wait=true"])
    looks = [SlurmAway("squeue: Unable to contact slurm controller")]
    ask = waiting.run_states

    def run_states(*args: Any, **options: Any) -> Any:
        if looks:
            raise looks.pop()
        return ask(*args, **options)

    monkeypatch.setattr(waiting, "run_states", run_states)
    assert dispatch(members, slurm.env, repo) == [1.0]
    assert "still waiting" in capfd.readouterr().err


def test_a_sweeper_that_is_not_ours_gets_values(repo, slurm, compose, monkeypatch):
    slurm.set(at_once=True)
    monkeypatch.setenv("PATH", slurm.env["PATH"])
    launcher = QueueLauncher()
    context = SimpleNamespace(config_loader=compose.loader)
    launcher.setup(hydra_context=context, task_function=None, config=compose.master)  # type: ignore[arg-type]
    results = launcher.launch([list(SLURM)], initial_job_idx=0)
    assert [result.return_value for result in results] == [1.0]


def test_members_that_learn_the_same_are_run_once(repo, slurm, compose, capfd):
    values = dispatch(compose(*grid(lrs=("0.5", "0.50", "5e-1"))), slurm.env, repo)
    assert values == ["100"] * 3 and slurm.submitted == [1]
    assert "2 of 3 members learn the same as others: run once" in capfd.readouterr().err


@pytest.mark.parametrize(("word", "times"), [((), None), (("hydra.launcher.max_num_timeout=2",), 2)])
def test_how_often_a_time_out_is_followed_by_a_requeue_is_in_the_plan(repo, slurm, compose, word, times):
    dispatch(compose([*SLURM, *word]), slurm.env, repo)
    (file,) = repo.glob("runs/*/submissions/*.jsonl")
    limits = json.loads(file.read_text())["execution"]["requeue"]
    others = {"max_attempts": 1000, "max_without_progress": 5, "max_excluded": 2}
    assert limits == {**others, "max_timeouts": times}


def test_what_the_limit_keeps_out_stays_planned(repo, slurm, compose, capfd):
    slurm.set(max_submit=1)
    assert dispatch(compose(*grid()), slurm.env, repo) == ["100", None]
    out, err = capfd.readouterr()
    assert "PLANNED    -" in out and "1 stay PLANNED; the same command submits them" in err
    slurm.set(max_submit=9)
    assert dispatch(compose(*grid()), slurm.env, repo) == ["100", "101"]


def test_many_runs_are_told_by_array(repo, slurm, compose, capfd):
    slurm.set(max_array=20)
    dispatch(compose(*grid(lrs=tuple(f"0.{i}" for i in range(11, 41)))), slurm.env, repo)
    out = capfd.readouterr().out
    assert out == "SUBMITTED  30 runs: 100, 101\n"


def test_where_jobs_print(repo, slurm, compose, tmp_path):
    folder = tmp_path / "job logs"
    members = compose(*grid(f"hydra.launcher.submitit_folder='{folder}/%j/x'"))
    dispatch(members, slurm.env, repo)
    (script,) = (sweep_of(repo) / "submissions").glob("*.sh")
    assert folder.is_dir() and f"{folder}/%A_%a_%t_log.out" in script.read_text()


class TestDryRun:
    def test_it_shows_all_and_changes_nothing(self, repo, slurm, compose, tmp_path, capfd):
        slurm.set(max_array=3)
        members = compose(
            *grid("launch.dry_run=true", "hardware.gpus_per_node=2", "hydra.launcher.submitit_folder=logs/%j",
                  lrs=("1", "2", "3", "4")),
            *grid("launch.dry_run=true", "hardware.nodes=2", lrs=("5",)),
        )  # fmt: skip
        before = tree(tmp_path / "my repo")
        assert dispatch(members, slurm.env, repo) == [None] * 5
        assert tree(tmp_path / "my repo") == before
        out = capfd.readouterr().out
        assert out.count("PLANNED") == 5 and out.count("#!/bin/bash") == out.count("to start at") == 2
        assert "5 would be submitted; at most 8.0 GPU-hours" in out
        assert "predicted on disk" in out and "# in all, all at once: " in out and "checkpoints are not known" in out
        assert "4 runs like this, in 2 arrays" in out and "--array=0-2%3" in out
        assert f"--output='{repo}/logs/%A_%a_0_log.out'" in out
        assert slurm.submitted == []

    def test_what_is_done_or_queued_is_not_counted(self, repo, slurm, compose, capfd):
        dispatch(compose(*grid()), slurm.env, repo)
        done, _ = (json.loads(line)["run_id"] for line in (sweep_of(repo) / "members.jsonl").read_text().splitlines())
        (sweep_of(repo) / done / "status.json").write_text('{"state": "COMPLETED"}')
        before = tree(repo)
        capfd.readouterr()
        dispatch(compose(*grid("launch.dry_run=true", lrs=("0.25", "0.5", "1"))), slurm.env, repo)
        out = capfd.readouterr().out
        assert [line.split()[1] for line in out.splitlines()[1:4]] == ["COMPLETED", "SUBMITTED", "PLANNED"]
        assert "# 1 would be submitted" in out and "# 1 runs like this" in out and "--array" not in out
        assert tree(repo) == before

    def test_a_shape_that_slurm_refuses_is_an_error(self, repo, slurm, compose, capfd):
        bad = grid("launch.dry_run=true", "hydra.launcher.partition=no", lrs=("7",))
        members = compose(*grid("launch.dry_run=true"), *bad)
        with pytest.raises(UserError, match="Invalid partition name"):
            dispatch(members, slurm.env, repo)
        out = capfd.readouterr().out
        assert out.count("# refused: ") == 1 and out.count("to start at") == 1

    def test_a_full_queue_is_no_refusal(self, repo, slurm, compose, capfd):
        slurm.set(max_submit=0, test_counts=True)
        dispatch(compose(*grid("launch.dry_run=true")), slurm.env, repo)
        assert "as many as Slurm takes would be submitted" in capfd.readouterr().out

    def test_on_this_machine_it_shows_the_plan(self, repo, compose, capfd):
        before = tree(repo)
        dispatch(compose([*TOY, "hardware=local_2", "launch.dry_run=true"]), dict(os.environ), repo)
        assert capfd.readouterr().out.count("PLANNED") == 1 and tree(repo) == before


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (["launch.name=a"], ["launch.name=b"], r"launch\.name: differs between members \(a, b\)"),
        (["launch.root=a"], ["launch.root=b"], r"launch\.root: differs between members"),
        (["launch.wait=true"], ["launch.wait=false"], r"launch\.wait: differs between members"),
        (["launch.root='~nosuchuser/x'"], None, r"launch\.root=~nosuchuser/x: "),
        (["site.slurm_conf='~nosuchuser/x'"], None, r"site\.slurm_conf=~nosuchuser/x: "),
        (["site.slurm_conf=/no/slurm.conf"], None, r"site\.slurm_conf=/no/slurm\.conf: there is no such file"),
        (["launch.root=/etc/passwd"], None, r"/etc/passwd.*Not a directory.*launch\.root"),
        (["hydra.launcher.submitit_folder=/etc/passwd/x"], None, r"/etc/passwd/x: .*submitit_folder"),
        (["task.target=nowhere:train"], None, "package nowhere: cannot be found"),
    ],
)  # fmt: skip
def test_what_cannot_be_dispatched_is_said_in_one_line(repo, slurm, compose, first, second, words):
    members = compose([*SLURM, *first], [*SLURM, *(second or first), "optim.lr=9"])
    before = tree(repo)
    with pytest.raises(UserError, match=words):
        dispatch(members, slurm.env, repo)
    left = {name for name in tree(repo) if name not in before}
    assert not any("plan.json" in name or "code" in name for name in left)
    assert slurm.submitted == []


def test_without_slurm_one_line_says_so(repo, compose, tmp_path):
    with pytest.raises(UserError, match="there is no Slurm on PATH"):
        dispatch(compose(*grid()), {"PATH": str(tmp_path)}, repo)
    assert not (repo / "runs").exists()


def test_a_site_of_the_users_own(repo, slurm, tmp_path):
    """As it is typed: with ``-m`` and without it Slurm submits; LAUNCHER_SITE chooses the user's file."""
    site = tmp_path / "config" / "seemore" / "site" / "mine.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("defaults: [default]\npartition: low\naccount: lab\nsetup: ['module load cuda']\n")
    env = slurm.env | {"XDG_CONFIG_HOME": str(tmp_path / "config"), "LAUNCHER_SITE": "mine"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return type_here(repo, env, *words)

    single = run(*SLURM)
    assert single.returncode == 0 and single.stdout.startswith("SUBMITTED  100 "), single.stderr
    many = run("-m", "hydra/launcher=submitit_slurm", *TOY, "optim.lr=1,2", "hydra.launcher.account=other")
    assert many.returncode == 0 and many.stdout.count("SUBMITTED  101_") == 2, many.stderr
    scripts = [Path(job["script"]).read_text() for job in slurm.state["jobs"].values()]
    assert "--account=lab" in scripts[0] and "--account=other" in scripts[1]
    assert all("--partition=low" in text and "module load cuda" in text for text in scripts)
    assert {path.name for path in repo.iterdir()} - {"__pycache__"} == {".git", ".gitignore", "toytask.py", "runs"}
    site.write_text("partitoin: low\n")
    wrong = run(*SLURM)
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1
    assert "unknown key 'site.partitoin'; did you mean 'partition'" in wrong.stderr
