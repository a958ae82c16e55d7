"""Comparing 1,000 finished runs: table, CSV, picture and page, by one command."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.identity import run_id
from launcher.runtime.plan import Plan
from launcher.runtime.sweepdir import SweepDir
from sweeps.bench.report import say

NAME = "compare"
_POINTS = 25
"""Logged steps of a run: a row of training and a row of validation each."""
_PACKAGES = {f"package-number-{i}": f"{i}.{i % 7}.{i % 11}" for i in range(180)}
_STEPS = [40 * (i + 1) for i in range(_POINTS)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--members", type=int, default=1000, help="runs to compare (1000)")


def run(args: argparse.Namespace) -> int:
    """Print seconds, the largest memory of the command, and the sizes of what it wrote.

    Raises:
        UserError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sweep = make_sweep(Path(folder) / "runs" / "bench", args.members)
        files = {kind: Path(folder) / f"bench.{kind}" for kind in ("csv", "plot", "html")}
        words = [sys.executable, "-m", "sweeps", "compare", str(sweep.path)]
        words += [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
        start = time.perf_counter()
        peak, said = peak_of(words, Path(folder))
        row: dict[str, Any] = {"runs": args.members, "seconds": time.perf_counter() - start, "peak_mb": peak / 1e6}
        if missing := [path for path in files.values() if not path.exists()]:
            raise UserError(f"{missing[0].name} was not written: {said[-2000:]}")
        row |= {f"{kind}_mb": path.stat().st_size / 1e6 for kind, path in files.items()}
        row["plan_kb"] = sweep.run(sweep.list_runs()[0]).plan.stat().st_size / 1e3
    say(f"{NAME}: the table and all files", [row], args.json)
    return ExitCode.DONE


def make_sweep(path: Path, members: int) -> SweepDir:
    """A sweep of ``members`` finished runs, as training leaves them: learning rates, depths, warm-ups, four seeds."""
    sweep = SweepDir(path)
    path.mkdir(parents=True)
    drawn = random.Random(0)
    asked = []
    for index in range(members):
        science = _science(index, random.Random(index // 4))
        plan = Plan(
            run_id=run_id(science), name=path.name, root=str(path.parent), target="vlm.task:train",
            schema="vlm.config:TrainConfig", science=science, execution=_execution(), code="74e19c3cdc14",
            environment={"python": "3.11.7", "packages": _PACKAGES}, created="2026-01-01T00:00:00+00:00",
            overrides=tuple(f"optim.lr={science['optim']['lr']} trainer.seed={index % 4}".split()), cwd="/somewhere",
        )  # fmt: skip
        _finish(sweep, plan, drawn)
        asked.append((plan.run_id, plan.overrides))
    sweep.add_members(asked)
    return sweep


def _science(index: int, setting: random.Random) -> dict[str, Any]:
    lr = float(f"{10 ** setting.uniform(-4, -2):.8g}")
    return {
        "model": {"n_embd": 96, "n_head": 4, "n_layer": setting.choice((2, 4, 8)), "dropout": 0.0, "img_size": 48},
        "data": {"kind": "shapes", "count": 6000, "seed": 0, "digest": "679c78a3d384", "shapes": ["circle", "square"]},
        "tokenizer": {"kind": "char"},
        "optim": {"kind": setting.choice(("adam", "adamw")), "lr": lr, "weight_decay": 0.01, "betas": [0.9, 0.99]},
        "schedule": {"kind": "cosine", "warmup_steps": setting.choice((0, 100, 500)), "min_lr_fraction": 0.05},
        "trainer": {"max_steps": _STEPS[-1], "batch_size": 16, "seed": index % 4, "grad_clip": 1.0},
    }


def _execution() -> dict[str, Any]:
    task = {"data": {"workers": 0, "cache_dir": "/somewhere"}, "trainer": {"val_every": 40, "log_every": 40}}
    checkpoint = {"every_steps": 500, "keep_last": 2, "keep_every": None, "at_end": "weights", "best": True}
    hardware = {"device": "cpu", "nodes": 1, "tasks_per_node": 1, "time_min": 60, "micro_batch": None}
    tracker = {"csv": True, "tensorboard": True}
    return {"task": task, "checkpoint": checkpoint, "hardware": hardware, "tracker": tracker}


def _finish(sweep: SweepDir, plan: Plan, drawn: random.Random) -> None:
    """Curves and numbers that depend on the settings; not through fsync, which is no part of what is measured."""
    rundir = sweep.run(plan.run_id)
    rundir.path.mkdir()
    science = plan.science
    floor = 0.4 + abs(math.log10(science["optim"]["lr"]) + 2.7) * 0.3 + 0.5 / science["model"]["n_layer"]
    floor += drawn.gauss(0, 0.05)
    losses = [(step, floor + 3 * math.exp(-step / 200) + drawn.gauss(0, 0.02)) for step in _STEPS]
    rows = [f"{step},{split},loss,{loss!r}" for step, loss in losses for split in ("train", "val")]
    best = min(loss for _, loss in losses)
    status = {"state": "COMPLETED", "step": _STEPS[-1], "loss": losses[-1][1], "samples_per_s": 350.0}
    summary = {"status": "COMPLETED", "step": _STEPS[-1], "train_loss": losses[-1][1], "val_loss": losses[-1][1]}
    rundir.plan.write_text(json.dumps(plan.to_json(), indent=2))
    rundir.status.write_text(json.dumps(status))
    rundir.summary.write_text(json.dumps(summary | {"best_val_loss": best, "samples_per_s": 350.0, "wall_s": 40.0}))
    rundir.metrics.write_text("\n".join(["step,split,name,value", *rows]) + "\n")


def peak_of(words: list[str], folder: Path) -> tuple[int, str]:
    """Bytes of the largest resident set of the command (getrusage(2): ``ru_maxrss``, in KiB), and what it said."""
    said = folder / "said"
    with said.open("wb") as file, subprocess.Popen(words, stdout=file, stderr=file) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"the command failed: {said.read_text()[-2000:]}")
    return usage.ru_maxrss * 1024, said.read_text()
