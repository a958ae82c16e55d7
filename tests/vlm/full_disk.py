"""Runs of the model on a disk that a test fills and empties; started by ``test_full_disk`` on a tmpfs of its own.

Says as JSON what became of each: an uninterrupted run, one for which the disk was full for two saves, and one for which
it stayed full until the run gave up, and which was started again once there was room.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.plan import make_plan
from launcher.runtime.checkpoint.manifest import require_whole
from launcher.runtime.errors import UserError
from launcher.runtime.job import run_job
from launcher.runtime.plan import Plan
from launcher.runtime.signals import StopFlag
from launcher.submission.disk import show_disk
from tests.ballast import Ballast
from tests.conftest import compose_values, small
from vlm.trainer import Trainer

WORDS = (
    "precision=fp32", "tracker=csv", "tracker.curves=false", "throughput.peak_tflops=null", "trainer.max_steps=12",
    "trainer.val_every=100", "trainer.log_every=1", "checkpoint.every_steps=2",
)  # fmt: skip


def saved(plan: Plan) -> list[int]:
    """Steps of the full states, every byte of each checked."""
    found = plan.rundir.list_checkpoints("step")
    for path in found:
        require_whole(path, checksums=True)
    return [int(path.name[5:17]) for path in found]


def run(plan: Plan, ballast: Ballast, room: Mapping[int, int]) -> dict[str, Any]:
    """Run ``plan`` with so many bytes free from the step on that ``room`` names; what became of it."""
    seen: dict[int, list[int]] = {}
    real = Trainer.train_step

    def step(self: Trainer, number: int, data: Any) -> Any:
        if number in room:
            self.session.let_save_end(60)
            seen[number] = saved(plan)
            ballast.leave(room[number])
        return real(self, number, data)

    Trainer.train_step = step  # type: ignore[method-assign]
    problem = ""
    try:
        run_job(plan, {}, StopFlag())
    except UserError as error:
        problem = str(error)
    finally:
        Trainer.train_step = real  # type: ignore[method-assign]
    summary = plan.rundir.read(plan.rundir.summary) or {}
    failures = plan.rundir.metrics.read_text().count("checkpoint,failures")
    return {
        "state": plan.rundir.state(), "problem": problem, "seen": seen, "saved": saved(plan), "failures": failures,
        "weights": summary.get("weights_sha256"), "loss": summary.get("val_loss"),
        "litter": [str(p) for p in plan.rundir.list_unfinished()],
    }  # fmt: skip


def main(disk: Path, cache: Path) -> None:
    """All of it."""
    ballast = Ballast(disk)
    values = compose_values(*small(*WORDS, f"data.cache_dir={cache}", f"launch.root={disk}"))
    plan = make_plan(values, default_name="whole", cwd=disk)
    plenty, little = 2_000_000, 100_000
    told: dict[str, str] = {}
    for name, free in (("warned", 400_000), ("not_warned", plenty)):
        ballast.leave(free)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            show_disk(disk, [plan])
        told[name] = said.getvalue()
    whole = run(plan, ballast, {})
    ballast.leave(plenty)
    passing = run(replace(plan, name="passing"), ballast, {5: little, 9: plenty})
    ballast.leave(plenty)
    staying = replace(plan, name="staying")
    gave_up = run(staying, ballast, {5: little})
    ballast.leave(plenty)
    again = run(staying, ballast, {})
    print(json.dumps({**told, "whole": whole, "passing": passing, "gave_up": gave_up, "again": again}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
