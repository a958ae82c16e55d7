"""From the warning of a preemption to the first new step, on a real Slurm: what is ours of it, and what is Slurm's."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm
from sweeps.bench.disposable import cluster
from sweeps.bench.report import say

NAME = "requeue"
_POLL_S = 0.02
_LONGEST_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--rounds", type=int, default=5, help="preemptions (5)")
    parser.add_argument("--nodes", type=int, default=2, help="nodes of the job, a rank on each (2)")
    parser.add_argument("overrides", nargs="*", default=["model=tiny"], help="of the run (model=tiny)")


def run(args: argparse.Namespace) -> int:
    """Preempt one job again and again; print the medians."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, cluster(None) as conf:
        bench = _Bench(Path(folder), conf, args)
        rounds = [bench.preempted() for _ in range(args.rounds)]
        row: dict[str, Any] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        say(f"{NAME}: preemption to the first new step, seconds, {args.nodes} ranks", [row], args.json)
    return ExitCode.DONE


class _Bench:
    """One run on a disposable cluster, from whose folder it is preempted."""

    def __init__(self, folder: Path, conf: str, args: argparse.Namespace) -> None:
        self._env = os.environ | {"SLURM_CONF": conf, "OMP_NUM_THREADS": "1"}
        self._slurm = Slurm(self._env)
        self._cluster_dir = Path(conf).parent.parent
        never = [f"trainer.{name}=1000000000" for name in ("max_steps", "val_every")]
        words = ["hydra/launcher=submitit_slurm", "site=disposable", "site.slurm_conf=null", "launch.name=bench"]
        words += ["hardware.device=cpu", f"hardware.nodes={args.nodes}", "trainer.log_every=1", *never, *args.overrides]
        self._call("launcher.run", *words, cwd=folder)
        sweep = SweepDir(folder / "runs" / "bench")
        (submission,) = sweep.read_submissions()
        ((run_id, self._job),) = submission.jobs()
        self._rundir: RunDir = sweep.run(run_id)
        self._attempts = 0

    def preempted(self) -> dict[str, float]:
        """Wait until it trains, have it preempted, and wait until it trains on."""
        self._attempts += 1
        self._until(lambda: self._starts() == self._attempts and self._state() == "RUNNING" and self._step() > 0)
        words = [sys.executable, "-m", "slurm", "preempt", self._job, "--dir", str(self._cluster_dir)]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as preempting:
            warned = self._until(lambda: self._slurm.show_job(self._job).get("PreemptTime", "None") != "None")
            asked = self._until(lambda: len(self._events("requeue")) == self._attempts)
            stopped_at = self._step()
            preempting.wait()
        began = self._until(self._runs_again)
        trains = self._until(lambda: self._starts() > self._attempts and self._step() > stopped_at)
        redone = stopped_at - int(self._events("start")[-1]["step"])
        return {
            "in_all": trains - warned,
            "ours": (asked - warned) + (trains - began),
            "ours_to_requeue": asked - warned,
            "ours_to_first_step": trains - began,
            "slurms": began - asked,
            "steps_redone": redone,
        }

    def _runs_again(self) -> bool:
        shown = self._slurm.show_job(self._job)
        return shown.get("JobState") == "RUNNING" and int(shown.get("Restarts", 0)) == self._attempts

    def _until(self, holds: Callable[[], bool]) -> float:
        """Seconds of the clock when ``holds`` was first seen to hold: another program's doing, there is no event."""
        deadline = time.monotonic() + _LONGEST_S
        while not holds():
            if time.monotonic() > deadline:
                raise UserError(f"run {self._rundir.path}: nothing happened for {_LONGEST_S:.0f} s; see its logs")
            time.sleep(_POLL_S)
        return datetime.now().timestamp()

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self._rundir.attempt_events() if event["event"] == kind]

    def _starts(self) -> int:
        return len(self._events("start"))

    def _state(self) -> str | None:
        return self._rundir.state()

    def _step(self) -> int:
        return int((self._rundir.read(self._rundir.status) or {}).get("step") or 0)

    def _call(self, *words: str, cwd: Path) -> None:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=cwd, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{words[0]}: {done.stderr[-2000:]}")
