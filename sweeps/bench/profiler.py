"""What profiler=steps costs a step outside of its windows, and inside of one."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode
from sweeps.bench.report import interleaved, ratio, say

NAME = "profiler"
_SPANS = ("communication", "data", "forward", "backward", "optimizer", "validation", "checkpoint", "communication")
"""What a step names, and a little more."""
_CALLS = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--text", type=int, default=32, help="tokens of a caption (32)")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each side (30)")


def run(args: argparse.Namespace) -> int:
    """Print a step of model=seemore, what waiting for a window adds to it (counted alone too), and recording it."""
    from launcher.runtime.profiler import StepProfiler
    from launcher.runtime.rundir import RunDir
    from launcher.runtime.settings import ProfilerSettings
    from launcher.runtime.world import World

    step = _a_step(args)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:

        def profiler(**values: Any) -> StepProfiler:
            return StepProfiler(ProfilerSettings(kind="steps", **values), RunDir(Path(folder)), World(), 1)

        waiting = profiler(wait=1_000_000_000)
        waiting.begin(0)
        alone_us = _alone_us(waiting)
        plain, outside = interleaved(step, _with(step, waiting), args.rounds)
        recording = profiler(wait=0, warmup=0, active=1_000_000_000)
        recording.begin(0)
        _, inside = interleaved(lambda: None, _with(step, recording), max(args.rounds // 3, 1))
        recording.close()
    step_ms = 1e3 * statistics.median(plain)
    row = {
        "step_ms": step_ms,
        "waiting_us": alone_us,
        "waiting_percent": alone_us / (10 * step_ms),
        "step_times_longer": ratio(outside, plain),
        "recording_times_longer": statistics.median(inside) / statistics.median(plain),
    }
    say(f"{NAME}: a step of model=seemore, batch {args.batch}, {args.device}", [row], args.json)
    return ExitCode.DONE


def _a_step(args: argparse.Namespace) -> Callable[[], Any]:
    from sweeps.bench.step import make_batch, make_trainer
    from vlm.data.loader import StepData

    args.compile = False
    trainer, batch = make_trainer(args, 0.0, "fp32"), make_batch(args)
    data = StepData([batch], batch.targets.numel(), args.batch, 0)

    def step() -> None:
        float(trainer.train_step(0, data))  # waits for it

    for _ in range(3):
        step()
    return step


def _with(step: Callable[[], Any], profiler: Any) -> Callable[[], None]:
    """A step as a run has it; the parts that the step itself names are named a second time, as far as it costs."""
    done = 0

    def whole() -> None:
        nonlocal done
        step()
        done += 1
        _what_a_step_adds(profiler, done)

    return whole


def _what_a_step_adds(profiler: Any, step: int) -> None:
    from launcher.runtime.spans import span

    for name in _SPANS:
        with span(name):
            pass
    profiler.at(step)


def _alone_us(profiler: Any) -> float:
    """Microseconds of what a step adds."""
    begun = time.perf_counter()
    for step in range(_CALLS):
        _what_a_step_adds(profiler, step)
    return (time.perf_counter() - begun) / _CALLS * 1e6
