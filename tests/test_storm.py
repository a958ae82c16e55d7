"""A storm: ranks of small runs are killed (-9) at random; each run ends like the one to which nothing happened.

Real processes of the local queue, no cluster. Three seeds belong to the ordinary tests, ``make storm`` takes thirty.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.rundir import RunDir
from slurm.processes import wait_until
from tests.integration.lab import BASE, TASK, Run, assert_same, samples

pytestmark = pytest.mark.slow

RANKS, STEPS, EVERY = 2, 60, 10
_LIMIT_S = 180
"""A run that is not done by then hangs."""
WORDS = (
    "hydra/launcher=submitit_local", f"hardware.tasks_per_node={RANKS}", *BASE, f"checkpoint.every_steps={EVERY}",
    f"trainer.max_steps={STEPS}", "site=default",
)  # fmt: skip


@dataclass
class Weather:
    """What was done to one run, and what it cost."""

    kills: list[tuple[int, int, int]] = field(default_factory=list)
    """Rank, the newest checkpoint's step when it was killed, and the last step that was done."""
    redone: list[int] = field(default_factory=list)
    """Steps that were computed again after each."""


def launched(home: Path, name: str) -> subprocess.Popen[str]:
    """The one run of the sweep ``name``, on its way."""
    env = os.environ | {"XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "launcher.run", *WORDS, f"launch.name={name}"]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=home, env=env, **pipes)


def ended(process: subprocess.Popen[str], home: Path, name: str) -> Run:
    """The run, once the command that launched it is done with it."""
    try:
        _, said = process.communicate(timeout=_LIMIT_S)
    finally:
        process.kill()  # its ranks end with it
    run = found(home, name)
    assert run is not None and process.returncode == 0, said + (run.story() if run else "")
    return run


def found(home: Path, name: str) -> Run | None:
    """The run, as soon as it has a folder."""
    plans = list((home / "runs" / name).glob("*/plan.json"))
    return Run(None, plans[0].parent, name) if plans else None


def ranks_of(queue: int) -> dict[int, int]:
    """Process id of each rank that the local queue ``queue`` has started."""
    ranks = {}
    for pid in Path(f"/proc/{queue}/task/{queue}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = [word for word in words if word.startswith(b"SUBMITIT_LOCAL_GLOBALID=")]
        ranks |= {int(word.partition(b"=")[2]): int(pid) for word in mine}
    return ranks


def last_step(run: Run) -> int:
    """Last step whose samples are written down."""
    path = run.path / "samples.csv"
    lines = path.read_text().rpartition("\n")[0].splitlines()[1:] if path.exists() else []
    return int(lines[-1].partition(",")[0]) if lines else 0


def survived(home: Path, seed: int) -> tuple[Run, Weather]:
    """A run of which random ranks are killed in random steps, once or twice; brought to its end by the queue alone."""
    drawn, name, weather = random.Random(seed), f"storm-{seed}", Weather()
    process = launched(home, name)
    reached = 0
    for life in range(1, drawn.randint(1, 2) + 1):
        target, rank = drawn.randint(reached + 1, min(reached + 25, STEPS - 10)), drawn.randrange(RANKS)

        def due(life: int = life, target: int = target) -> bool:
            run = found(home, name)
            lived = run is not None and len(run.events("start")) >= life and last_step(run) >= target
            return lived or process.poll() is not None

        assert wait_until(due, _LIMIT_S) is not False, f"seed {seed}: never came to step {target}"
        victim = ranks_of(process.pid).get(rank) if process.poll() is None else None
        if victim is None:
            break  # the run was faster
        run = found(home, name)
        assert run is not None
        saved = RunDir(run.path).newest_step()
        os.kill(victim, signal.SIGKILL)
        assert wait_until(lambda run=run, life=life: len(run.events("requeue")) >= life, _LIMIT_S), run.story()
        reached = last_step(run)
        weather.kills.append((rank, saved, reached))
    run = ended(process, home, name)
    resumed = [event["step"] for event in run.events("start")][1:]
    for (_, saved, last), step in zip(weather.kills, resumed, strict=True):
        assert saved <= step <= last, (weather, run.story())  # from the last checkpoint, or one that was under way
        weather.redone.append(last - step)
    return run, weather


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are typed."""
    folder = tmp_path_factory.mktemp("storm")
    (folder / "exact_task.py").write_text(TASK)
    return folder


@pytest.fixture(scope="session")
def whole(home: Path) -> Run:
    """The run to which nothing happens."""
    run = ended(launched(home, "whole"), home, "whole")
    assert len(run.events("start")) == 1 and len(samples(run)) == 8 * STEPS
    return run


def check(seed: int, home: Path, whole: Run, record_property: Callable[[str, Any], None]) -> None:
    """One run of the storm."""
    run, weather = survived(home, seed)
    assert weather.kills, "no rank was killed: the run was faster"
    assert_same(run, whole)
    # Those since the last checkpoint, and some that were computed while the next one was being written.
    assert max(weather.redone) < 2 * EVERY, (weather, run.story())
    assert not list(run.path.glob("checkpoints/.unfinished-*"))
    record_property("storm", {"kills": len(weather.kills), "redone": max(weather.redone)})


@pytest.mark.parametrize("seed", range(3))
def test_ranks_killed_at_random_cost_a_few_steps_and_nothing_else(
    seed: int, home: Path, whole: Run, record_property: Callable[[str, Any], None]
):
    check(seed, home, whole, record_property)


@pytest.mark.storm
def test_as_often_as_it_is_asked_for(
    storm_seed: int, home: Path, whole: Run, record_property: Callable[[str, Any], None]
):
    check(storm_seed, home, whole, record_property)
