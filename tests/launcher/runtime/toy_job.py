"""A toy task that ends in every way a task can end, its plans, and what its runs leave."""

from __future__ import annotations

import csv
import json
import os
import signal
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from launcher.runtime.errors import TrainingFailed, UserError
from launcher.runtime.identity import run_id
from launcher.runtime.plan import Plan
from launcher.runtime.sections import Section, execution, halves, hashed, parse
from launcher.runtime.session import Session

with warnings.catch_warnings():  # tensorboard's own protobuf
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Toy(Section):
    """How the toy is trained, and how its training ends."""

    steps: int
    lr: float
    end: Literal["well", "stop", "refuse", "diverge", "crash", "interrupt"] = execution("well")
    at: int = execution(0)
    hub_token: str = execution("hf-secret")


ENDS = {
    "refuse": UserError("data.path=x: no such file"),
    "diverge": TrainingFailed("step 3: the loss is nan; lower optim.lr"),
    "crash": ZeroDivisionError("oh"),
    "interrupt": KeyboardInterrupt(),
}


def train(session: Session) -> dict[str, str] | None:
    """A loop as the session's docstring wants it; it draws random numbers at every step."""
    config: Toy = session.config
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    saved = session.restore()
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    session.expect(config.steps)
    for step in range(saved["step"] + 1 if saved else 1, config.steps + 1):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values, metric = {"train/loss": float(loss.detach()), "time/total": 0.1}, None
        if step % 2 == 0:
            metric = values["val/loss"] = 1.0 / step
        session.log(values, step)
        if step == config.at and config.end in ENDS:
            raise ENDS[config.end]
        if step == config.at and config.end == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        stop = session.should_stop()
        session.save({"step": step, "model": model, "optimizer": optimizer, "words": ["a"]}, metric)
        if stop:
            return None
    return {"note": "well done"}


def toy_job(folder: Path, root: str = "runs", trackers: Iterable[str] = ("csv", "tensorboard"), **changes: Any) -> Plan:
    """A plan of the toy: ``end="stop", at=3, keep_last=3, …``; equal science stands in one directory."""
    checkpoint = {"every_steps": None, "keep_last": 2, "keep_every": None, "at_end": "state", "best": True}
    checkpoint["restart_if_damaged"] = False
    checkpoint |= {key: changes.pop(key) for key in tuple(changes) if key in checkpoint}
    config = parse(Toy, {"steps": STEPS, "lr": 0.01} | changes)
    science, other = halves(config)
    return Plan(
        run_id=run_id(hashed(config)),
        name="toys",
        root=str(folder / root),
        target=f"{__name__}:train",
        schema=f"{__name__}:Toy",
        science=science,
        execution={
            "task": other,
            "checkpoint": checkpoint,
            "tracker": dict.fromkeys(trackers, True),
            "hardware": {"device": "cpu", "micro_batch": None},
        },
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def events(plan: Plan) -> list[tuple]:
    return [(e["event"], e["attempt"], e.get("code"), e.get("reason")) for e in plan.rundir.attempt_events()]


def losses(plan: Plan) -> list[tuple[int, float]]:
    """Step and training loss of every row of ``metrics.csv``."""
    with plan.rundir.metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["split"], row["name"]) == ("train", "loss")]
    return [(int(row["step"]), float(row["value"])) for row in rows]


def board_losses(plan: Plan) -> list[tuple[int, float]]:
    board = EventAccumulator(str(plan.rundir.tensorboard), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss")]


def status(plan: Plan) -> dict:
    return json.loads(plan.rundir.status.read_text())
