"""What one more packed member costs over its training: run directory, TensorBoard, checkpoint, its process and all."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.compose import compose_values
from launcher.plan import make_queued_plan
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.plan import Plan
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from sweeps.bench.report import say
from sweeps.bench.tiny import TINY

NAME = "member"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--rounds", type=int, default=30, help="members, and as many bare trainings (30)")


def run(args: argparse.Namespace) -> int:
    """Print the medians of a packed member, of its training alone, and of their difference."""
    from launcher.runtime.pack.preload import preload

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        plan = _plan(Path(folder))
        preload(plan)
        _seconds(plan, bare=True)  # makes the data, once
        members, bare = [], []
        for index in range(args.rounds):
            members.append(_seconds(_of_seed(plan, index), bare=False))
            bare.append(_seconds(_of_seed(plan, index), bare=True))
    costs = [1000 * (member - alone) for member, alone in zip(members, bare, strict=True)]
    row = {
        "rounds": args.rounds,
        "member_ms": 1000 * statistics.median(members),
        "training_ms": 1000 * statistics.median(bare),
        "cost_ms": statistics.median(costs),
    }
    say(f"{NAME}: one more packed member over its training", [row], args.json)
    return ExitCode.DONE


def _plan(folder: Path) -> Plan:
    values = compose_values([*TINY, f"launch.root={folder}", "launch.name=members"])
    return make_queued_plan(values, {}, default_name="members", cwd=folder, code=None, here=True)[0]


def _of_seed(plan: Plan, seed: int) -> Plan:
    science = plan.science | {"trainer": plan.science["trainer"] | {"seed": seed}}
    return replace(plan, science=science, run_id=f"{seed:012x}")


def _seconds(plan: Plan, *, bare: bool) -> float:
    """Of a packed member from the fork to its last word; of a bare training what the task itself takes."""
    from launcher.runtime.pack.child import Child
    from launcher.runtime.pack.preload import preload_too

    start = time.perf_counter()
    spent = Path(plan.root) / "spent"
    child = Child(lambda stop: _train_bare(plan, spent) if bare else _train(plan, stop))
    if code := child.reap():
        raise UserError(f"a member ended with code {code}")
    preload_too(child.imported)
    return float(spent.read_text()) if bare else time.perf_counter() - start


def _train(plan: Plan, stop: StopFlag) -> int:
    from launcher.runtime.job import run_job

    return run_job(plan, os.environ, stop, visible=False).code


def _train_bare(plan: Plan, spent: Path) -> int:
    from vlm.task import train

    session = _Bare(plan)
    start = time.perf_counter()
    train(session)  # type: ignore[arg-type]
    spent.write_text(str(time.perf_counter() - start))
    return ExitCode.DONE


class _Bare:
    """A session that keeps and says nothing."""

    stopping = False

    def __init__(self, plan: Plan) -> None:
        self.config, self.rundir, self.world = plan.config(), plan.rundir, World()

    def peak_flops(self, dtype: Any) -> None: ...

    def expect(self, total_steps: int) -> None: ...

    def restore(self) -> None: ...

    def should_stop(self) -> bool:
        return False

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def save(self, state: Mapping[str, Any], metric: float | None = None) -> None: ...
