"""A study's workers on a real Slurm: preempted, killed and cancelled, and no trial is lost or repeated."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.rundir import RunDir
from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

STUDY = """
metric: train_loss
fixed: {task.target: "bowl:train", task.schema: "bowl:Config", site: disposable, site.slurm_conf: null, tracker: csv,
        trainer.max_steps: 4, checkpoint.every_steps: 1, hardware.device: cpu}
search:
  optim.lr: {log: [1.0e-4, 1.0e-1]}
study: {n_trials: 16, sampler: random}
"""
BOWL = """
import time
from dataclasses import dataclass
from typing import Any

import torch

from launcher.runtime.sections import Section, execution


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    optim: dict[str, Any]
    trainer: dict[str, Any]
    model: dict[str, Any] = execution()
    data: dict[str, Any] = execution()
    tokenizer: dict[str, Any] = execution()
    schedule: dict[str, Any] = execution()
    precision: dict[str, Any] = execution()


def train(session):
    step = int((session.restore() or {"step": 0})["step"])
    go = session.rundir.path.parent / "go"
    while step < session.config.trainer["max_steps"]:
        step += 1
        with (session.rundir.path / "steps").open("a") as file:
            print(step, file=file)
        session.log({"train/loss": session.config.optim["lr"] + 1 / step}, step)
        while step == 2 and not go.exists() and not session.should_stop():
            time.sleep(0.02)
        session.save({"step": step, "model": torch.nn.Linear(1, 1)})
        if session.should_stop():
            return
"""


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user of the shared cluster with a search in their repository; no job of theirs is left."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "bowl.py").write_text(BOWL)
    (home / "sweep.yaml").write_text(STUDY)
    yield User(cluster, home)
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def search(user: User, *words: str) -> str:
    done = user.type("sweeps", "study", "sweep.yaml", "hydra/launcher=submitit_slurm", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(user: User) -> list[dict[str, Any]]:
    """What Optuna holds, by number."""
    from launcher.runtime.sweepdir import SweepDir
    from sweeps.study.folder import StudyDir
    from sweeps.study.storage import open_study

    folder = StudyDir(SweepDir(user.sweep))
    definition = folder.read()
    assert definition is not None
    with folder.locked():
        found = open_study(folder, definition).get_trials(deepcopy=False)
    return [{"number": t.number, "state": t.state.name, "value": t.value, **t.user_attrs} for t in found]


def steps(user: User) -> dict[str, list[int]]:
    return {path.parent.name: [int(w) for w in path.read_text().split()] for path in user.sweep.glob("*/steps")}


def held(user: User) -> list[str]:
    """Runs that wait in their second step."""
    return [run for run, done in steps(user).items() if done[-1] == 2]


def worker_of(run: str) -> int:
    """Process id of the worker whose child trains ``run``."""
    child = RunDir(Path(run)).lock_holder()
    assert child is not None
    return int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])


def story(user: User) -> str:
    logs = [f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(user.sweep.glob("jobs/*"))]
    return "\n".join([json.dumps(trials(user), indent=1), str(steps(user)), *logs])


def test_workers_that_are_preempted_and_killed_lose_and_repeat_nothing(user: User, client: Client):
    search(user, "--workers", "4", "launch.name=sweep")
    (array,) = user.job_ids()
    assert wait_until(lambda: len(held(user)) == 4, 90), story(user)
    rows = json.loads(user.type("launcher", "status", "runs/sweep", "--json").stdout)
    assert [row["state"] for row in rows] == ["RUNNING"] * 4
    assert {row["job_id"] for row in rows} == {f"{array}_{index}" for index in range(4)}
    again = search(user, "--workers", "4", "launch.name=sweep")
    assert "4 workers are queued or run already" in again and user.job_ids() == [array]
    os.kill(
        worker_of(next(str(user.home / row["path"]) for row in rows if row["job_id"] == f"{array}_2")), signal.SIGKILL
    )
    assert wait_until(lambda: show_job(user.cluster, f"{array}_2").restarts == 1, 90), story(user)
    preempt(user.cluster, f"{array}_1")
    user.let_go()
    assert wait_until(lambda: not client("squeue", "--noheader"), 120), story(user)
    found = trials(user)
    assert [trial["number"] for trial in found] == list(range(16)), story(user)
    assert {trial["state"] for trial in found} == {"COMPLETE"}, story(user)
    done = steps(user)
    assert len(done) == 16 and all(sorted(set(ran)) == [1, 2, 3, 4] for ran in done.values())
    assert sum(len(ran) - 4 for ran in done.values()) <= 1, "of the killed worker's trial, the step that was not saved"
    shown = user.type("sweeps", "study", "sweep.yaml", "--show", "launch.name=sweep")
    assert "16 of 16 trials: 16 COMPLETE" in shown.stdout, shown.stderr


def test_a_study_is_cancelled_as_a_whole_and_the_same_command_goes_on(user: User, client: Client):
    search(user, "--workers", "2", "--trials", "3", "launch.name=sweep")
    (array,) = user.job_ids()
    assert wait_until(lambda: len(held(user)) == 2, 90), story(user)
    done = user.type("launcher", "cancel", f"runs/sweep/{held(user)[0]}")
    assert done.returncode == 1 and "name the folder of all" in done.stderr
    done = user.type("launcher", "cancel", "runs/sweep")
    assert done.returncode == 0 and f"{array}_[0-1]" in done.stdout, done.stderr
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)
    rows = json.loads(user.type("launcher", "status", "runs/sweep", "--json").stdout)
    assert all(row["state"] in ("PREEMPTED", "CANCELLED") for row in rows), rows
    user.let_go()
    waited = user.type("sweeps", "study", "sweep.yaml", "hydra/launcher=submitit_slurm", "launch.name=sweep",
                       "--trials", "3", "launch.wait=true")  # fmt: skip
    assert waited.returncode == 0 and "3 of 3 trials: 3 COMPLETE" in waited.stdout, waited.stderr + story(user)
    assert "best: trial" in waited.stdout
