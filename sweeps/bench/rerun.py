"""The same command again on a sweep that is done: how soon it says that nothing is left to do, and what it calls."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.files import write_json
from launcher.runtime.plan import Plan
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.reconcile import Rule, nothing_to_do
from sweeps.bench.report import say

NAME = "rerun"
_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol")
_SLURM = """#!/bin/sh
echo "$0 $*" >> '{calls}'
case "$0 $*" in
*sbatch*--test-only*) echo 'sbatch: Job 1 to start at 2030-01-01T00:00:00' ;;
*sbatch*) echo 1 ;;
*scontrol*) echo 'MaxArraySize = 1000001' ;;
esac
"""
"""Takes every job and runs none: the runs are then said to be done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--members", type=int, default=1000, help="members of the sweep (1000)")
    parser.add_argument("--rounds", type=int, default=5, help="commands that are timed (5)")


def run(args: argparse.Namespace) -> int:
    """Print seconds of the whole command and of the decision alone, and the calls of Slurm's commands: none."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = _Bench(Path(folder), args.members)
        first = bench.command()
        bench.complete()
        calls, before = len(bench.calls()), bench.files()
        seconds = [bench.command() for _ in range(args.rounds)]
        decided = [bench.decision() for _ in range(args.rounds)]
        row: dict[str, Any] = {
            "members": args.members,
            "first_s": first,
            "again_s": statistics.median(seconds),
            "decision_s": statistics.median(decided),
            "slurm_calls": len(bench.calls()) - calls,
            "sbatch_calls": sum("/sbatch " in call for call in bench.calls()[calls:]),
            "files_written": len(before ^ bench.files()),
        }
        say(f"{NAME}: the same command again, all members COMPLETED", [row], args.json)
    return ExitCode.DONE


class _Bench:
    """A sweep that was submitted to a Slurm that only takes note."""

    def __init__(self, folder: Path, members: int) -> None:
        self._home, self._members = folder / "home", members
        self._home.mkdir()
        self._calls = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in _COMMANDS:
            (self._bin / name).write_text(_SLURM.format(calls=self._calls))
            (self._bin / name).chmod(0o755)
        self._sweep = SweepDir(self._home / "runs" / "bench")

    def command(self) -> float:
        """Seconds of the whole command."""
        words = ["launcher.run", "-m", "hydra/launcher=submitit_slurm", "launch.name=bench"]
        words.append(f"trainer.seed=range(0,{self._members})")
        slurm = ["env", "-u", "SLURM_CONF", "sh", "-c", 'PATH="$0:$PATH" exec "$@"', str(self._bin)]
        start = time.perf_counter()
        done = subprocess.run(
            [*slurm, sys.executable, "-m", *words], cwd=self._home, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise UserError(f"{words[0]}: {done.stderr[-2000:]}")
        return seconds

    def complete(self) -> None:
        """Let every run say that it is done."""
        for run_id in self._sweep.list_runs():
            rundir = self._sweep.run(run_id)
            rundir.write_status(state="COMPLETED", step=1000, heartbeat=time.time())
            write_json(rundir.summary, {"status": "COMPLETED", "step": 1000, "train_loss": 1.0}, durable=False)

    def decision(self) -> float:
        """Seconds from plans to decisions."""
        plans = [Plan.read(self._sweep.run(run_id)) for run_id in self._sweep.list_runs()]
        start = time.perf_counter()
        found = nothing_to_do(self._sweep, plans, Rule(), plans[0].code)
        seconds = time.perf_counter() - start
        if found is None or len(found) != self._members:
            raise UserError(f"{self._sweep.path}: not all of {self._members} runs are done")
        return seconds

    def calls(self) -> list[str]:
        """Every call of Slurm's commands so far."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def files(self) -> set[tuple[str, int]]:
        """Each file of the sweep with the time at which it was last written (ns)."""
        return {(str(path), path.lstat().st_mtime_ns) for path in self._sweep.path.rglob("*")}
