"""A study of a toy: its task, its folder, workers as real processes, and what Optuna holds at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.files import write_json
from launcher.runtime.identity import run_id
from launcher.runtime.pack.crew import Claim
from launcher.runtime.plan import Plan
from launcher.runtime.recipe import Recipe
from launcher.runtime.sections import Section, execution, halves, hashed, parse
from launcher.runtime.session import Session
from launcher.runtime.sweepdir import SweepDir, write_plans
from launcher.submission.goal import Goal
from sweeps.study.definition import Definition, Limits, StudySettings
from sweeps.study.folder import StudyDir
from sweeps.study.space import read_space
from sweeps.study.storage import open_study, require_optuna
from sweeps.study.trials import Trials
from tests.conftest import REPOSITORY

TOKEN = "local-lab"
SPACE: dict[str, Any] = {"x": {"linear": [-1.0, 1.0]}, "width": {"choices": [1, 2, 3]}}


@dataclass(frozen=True, kw_only=True)
class Toy(Section):
    """A bowl: the loss is (x - 0.25)^2 + width / 10, approached step by step."""

    x: float
    width: int
    steps: int
    heads: int = 1
    hold_at: int = execution(0)
    """Step in which the task waits for a file ``go`` beside the runs."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not divisible by heads={self.heads}")


def train(session: Session) -> None:
    """Each step logs, saves and asks."""
    import torch

    config: Toy = session.config
    saved = session.restore()
    done = int(saved["step"]) if saved else 0
    with (session.rundir.path / "steps").open("a") as file:
        for step in range(done + 1, config.steps + 1):
            print(step, file=file, flush=True)
            loss = (config.x - 0.25) ** 2 + config.width / 10 + 1.0 / step
            session.log({"train/loss": loss, "val/loss": loss}, step)
            while step == config.hold_at and not (session.rundir.path.parent / "go").exists():
                if session.should_stop():
                    break
                time.sleep(0.01)
            stop = session.should_stop()
            session.save({"step": step, "model": torch.nn.Linear(1, 1)}, loss)
            if stop:
                return


def definition(
    root: Path, space: dict[str, Any] = SPACE, metric: str = "best_val_loss", direction: Any = "minimize", **said: Any
) -> Definition:
    """A study of the toy; ``said`` are fields of the toy, the rest of the study's settings."""
    toy = {"x": 0.0, "width": 6, "steps": 3, "heads": 1} | {
        key: said.pop(key) for key in tuple(said) if key in Toy.__annotations__
    }
    config = parse(Toy, toy)
    science, other = halves(config)
    checkpoint = {"every_steps": 1, "keep_last": 2, "keep_every": None, "at_end": "nothing", "best": False}
    plan = Plan(
        run_id=run_id(hashed(config)), name="toys", root=str(root / "runs"), target=f"{__name__}:train",
        schema=f"{__name__}:Toy", science=science, cwd=str(root), overrides=("launch.name=toys",),
        execution={
            "task": other, "checkpoint": checkpoint, "tracker": {"csv": True},
            "hardware": {"device": "cpu", "micro_batch": None},
        },
    )  # fmt: skip
    settings = parse(StudySettings, {"n_trials": 8} | said)
    return Definition(Goal(metric, direction, "toys"), read_space(space), settings, Recipe(plan, toy, False))


def made(root: Path, what: Definition, *, storage_too: bool = False) -> StudyDir:
    """The folder of a study, as the command leaves it for its workers."""
    require_optuna()
    folder = StudyDir(SweepDir(root / "runs" / "toys"))
    with folder.locked():
        folder.create(what, Limits(what.settings.n_trials, what.settings.timeout_min))
        if storage_too:
            open_study(folder, what)
    write_plans(folder.sweep.plans(TOKEN), [what.recipe.plan.to_json()])
    write_json(folder.frozen(TOKEN), what.to_json())
    return folder


def start(folder: StudyDir, count: int = 1, **how: Any) -> list[subprocess.Popen[str]]:
    """So many workers, as processes."""
    words = [sys.executable, "-uP", "-m", "sweeps.study.worker", str(folder.sweep.plans(TOKEN))]
    given = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'launcher' / 'plugin'}", "OMP_NUM_THREADS": "1"}
    made = {"text": True, "stderr": subprocess.PIPE, "env": os.environ | given, **how}
    return [subprocess.Popen(words, **made) for _ in range(count)]  # type: ignore[call-overload]


def ended(workers: Iterable[subprocess.Popen[str]]) -> list[int]:
    """Exit codes; what a worker that broke down said is shown."""
    codes = []
    for worker in workers:
        said = worker.communicate(timeout=240)[1]
        if worker.returncode not in (0, 75):
            print(said)
        codes.append(worker.returncode)
    return codes


def trials(folder: StudyDir) -> list[Any]:
    """All trials, by number."""
    what = folder.read()
    assert what is not None
    with folder.locked():
        return open_study(folder, what).get_trials(deepcopy=False)


def pretend(claim: Claim, state: str = "COMPLETED", **summary: Any) -> int:
    """Be the run of a claim, in no time; returns its exit code."""
    rundir, config = claim.plan.rundir, claim.plan.config()
    rundir.path.mkdir(parents=True, exist_ok=True)
    with (rundir.path / "pretended").open("a") as file:
        print("once", file=file)
    value = (config.x - 0.25) ** 2 + config.width / 10
    write_json(rundir.summary, {"status": state, "best_val_loss": value} | summary)
    rundir.write_status(state=state, reason="")
    return 0 if state == "COMPLETED" else 1


def work(folder: StudyDir, name: str = "me", most: int | None = None) -> int:
    """Be a worker in this process that only pretends to train; returns how many trials it ran."""
    what = folder.read()
    assert what is not None
    count = 0
    with folder.queue.joined(name):
        source = Trials(folder, what, name)
        while (most is None or count < most) and (claim := source.claim(frozenset())) is not None:
            count += 1
            source.end(claim, pretend(claim))
    return count


def assert_whole(folder: StudyDir, count: int) -> None:
    """``count`` trials, all told with the value of their own parameters, each run trained once."""
    found = trials(folder)
    assert [trial.number for trial in found] == list(range(count))
    assert {trial.state.name for trial in found} == {"COMPLETE"}, [
        (t.number, t.state.name, t.user_attrs) for t in found
    ]
    for trial in found:
        told = folder.read_trial(trial.number)
        assert told is not None and told.params == trial.params
        summary = json.loads(told.plan.rundir.summary.read_text())
        assert trial.value == summary["best_val_loss"]
    assert folder.queue.list_waiting() == [] and folder.queue.claims() == {}
