"""Finished runs as training leaves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.runtime.identity import run_id
from launcher.runtime.plan import Parent, Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import flat, merged
from launcher.runtime.sweepdir import SweepDir

SCIENCE = {
    "model": {"n_layer": 2, "dropout": 0.0},
    "data": {"kind": "shapes", "seed": 0, "split_seed": 0, "digest": "d0"},
    "optim": {"kind": "adamw", "lr": 0.001, "betas": [0.9, 0.99]},
    "trainer": {"seed": 0, "batch_size": 16},
}
EXECUTION = {"task": {"trainer": {"val_every": 10}}, "hardware": {"device": "cpu"}}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optim.lr": 1}`` as ``{"optim": {"lr": 1}}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        inner = {last: value}
        for section in reversed(sections):
            inner = {section: inner}
        result = merged(result, inner)
    return result


def made_run(
    folder: Path,
    loss: float | None = 1.0,
    *,
    state: str = "COMPLETED",
    curve: Mapping[int, float] | None = None,
    task: str = "vlm.task:train",
    code: str | None = None,
    parent: Parent | None = None,
    **settings: Any,
) -> RunDir:
    """A run of the sweep ``folder``; ``optim__lr=…`` changes a setting, one of execution begins with ``x__``.

    Args:
        loss: its best validation loss, of the summary; None: the summary has none.
        curve: ``val/loss`` by step.
    """
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    execution = {key.removeprefix("x."): value for key, value in keys.items() if key.startswith("x.")}
    science = merged(SCIENCE, nested({k: v for k, v in keys.items() if not k.startswith("x.")}))
    named = run_id({"all": repr((flat(science), task, execution))}, parent and parent.run_id)
    plan = Plan(
        run_id=named, name=folder.name, root=str(folder.parent),
        target=task, schema="a.b:C", science=science, execution=merged(EXECUTION, nested(execution)), code=code,
        parent=parent,
    )  # fmt: skip
    rundir = SweepDir(folder).run(plan.run_id)
    rundir.path.mkdir(parents=True)
    rundir.plan.write_text(json.dumps(plan.to_json()))
    rundir.status.write_text(json.dumps({"state": state, "step": 20, "loss": 2.5, "reason": ""}))
    if state == "COMPLETED":
        numbers = {"train_loss": 0.5 if loss is None else loss + 0.1, "best_val_loss": loss, "samples_per_s": 100}
        rundir.summary.write_text(json.dumps({"status": state, "step": 20, **numbers}))
    if curve is None:
        end = 2.0 if loss is None else loss
        curve = {10: 2 * end, 20: end}
    rows = [f"{step},{split},loss,{value!r}" for step, value in curve.items() for split in ("train", "val")]
    rundir.metrics.write_text("\n".join(["step,split,name,value", *rows]) + "\n")
    return rundir


def made_grid(folder: Path, rates: tuple[float, ...] = (0.001, 0.003), seeds: int = 2) -> list[RunDir]:
    """Runs of every rate and seed: the loss is a thousand times the rate, and a hundredth for each seed."""
    return [
        made_run(folder, 1000 * rate + 0.01 * seed, optim__lr=rate, trainer__seed=seed)
        for rate in rates
        for seed in range(seeds)
    ]
