"""`vlm trace` of a trace of 50 MB: seconds and memory."""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import ProfilerSettings
from sweeps.bench.compare import peak_of
from sweeps.bench.report import say

NAME = "trace"
_STEPS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--mb", type=float, default=50.0, help="size of the trace, uncompressed (50)")


def run(args: argparse.Namespace) -> int:
    """Print the size of the trace, its events, and seconds and largest memory of the command.

    Raises:
        UserError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        large = folder / "large.json"
        # In a process of its own: what this one holds would be counted as the command's (getrusage(2)).
        maker = multiprocessing.get_context("spawn").Process(target=_make, args=(folder, large, int(args.mb * 1e6)))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise UserError("the trace could not be made: see above")
        start = time.perf_counter()
        peak, said = peak_of([sys.executable, "-m", "vlm", "trace", str(large), "--top", "100", "--json"], folder)
        row = {
            "trace_mb": large.stat().st_size / 1e6,
            "seconds": time.perf_counter() - start,
            "peak_mb": peak / 1e6,
            "steps": json.loads(said)["n_steps"],
        }
    say(f"{NAME}: where the time went, by the command", [row], args.json)
    return ExitCode.DONE


def _make(folder: Path, target: Path, n_bytes: int) -> None:
    """Record a real trace, and write its events to ``target`` again and again, each time later, up to ``n_bytes``."""
    source = _recorded(folder)
    with gzip.open(source, "rt") as file:
        events = [e for e in json.load(file)["traceEvents"] if e["ph"] == "X" and e["cat"] != "Trace"]
    begun = min(e["ts"] for e in events)
    length = max(e["ts"] + e["dur"] for e in events) - begun
    with target.open("w") as file:
        file.write('{"schemaVersion": 1, "traceEvents": [\n')
        turn = 0
        while file.tell() < n_bytes:
            for number, event in enumerate(events):  # indented as torch does: that too is to be read
                comma = "," if turn or number else ""
                file.write(comma + json.dumps(_later(event, turn, length), indent=2) + "\n")
            turn += 1
        file.write("]}")


def _later(event: dict[str, Any], turn: int, length: float) -> dict[str, Any]:
    name, marks, number = event["name"].partition("ProfilerStep#")
    later = event | {"ts": round(event["ts"] + turn * length, 3)}
    return later | {"name": f"{name}{marks}{int(number) + turn * _STEPS}"} if marks else later


def _recorded(folder: Path) -> Path:
    """A real trace of a few steps of model=seemore."""
    from launcher.runtime.profiler import StepProfiler
    from launcher.runtime.world import World
    from sweeps.bench.step import make_batch, make_trainer
    from vlm.data.loader import StepData

    args = argparse.Namespace(batch=2, text=32, compile=False, device="cpu")
    trainer, batch = make_trainer(args, 0.0, "fp32"), make_batch(args)
    data = StepData([batch], batch.targets.numel(), args.batch, 0)
    settings = ProfilerSettings(kind="steps", wait=0, warmup=1, active=_STEPS, shapes=True)
    profiler = StepProfiler(settings, RunDir(folder), World(), 1)
    profiler.begin(0)
    for step in range(_STEPS + 1):
        trainer.train_step(0, data)
        profiler.at(step + 1)
    profiler.close(60)
    traces = RunDir(folder).list_traces()
    if not traces:
        raise UserError("nothing was recorded")
    return traces[0]
