"""A sweep of tiny runs on a real Slurm, from the command to the last result: packed, stock, and an array of nothing."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError
from sweeps.bench.disposable import cluster
from sweeps.bench.report import say
from sweeps.bench.tiny import TINY

NAME = "pack"
_LIMIT_S = 3000.0
_POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--members", type=int, default=200, help="members of the sweep (200)")
    parser.add_argument("--workers", type=int, default=4, help="jobs that share them (4: one for each node)")
    parser.add_argument(
        "--no-stock", action="store_true", help="leave out stock hydra-submitit-launcher, which is slow"
    )


def run(args: argparse.Namespace) -> int:
    """Print seconds of each, and their ratios."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, cluster(None) as conf:
        bench = _Bench(Path(folder), conf, args.members)
        bench.warm_up()
        row: dict[str, Any] = {"members": args.members, "workers": args.workers}
        row["bare_array_s"] = bench.bare_array()
        row["packed_s"] = bench.packed(args.workers)
        row["packed_over_bare"] = row["packed_s"] / row["bare_array_s"]
        if not args.no_stock:
            row["stock_s"] = bench.stock()
            row["times_sooner"] = row["stock_s"] / row["packed_s"]
        say(f"{NAME}: a sweep of tiny runs until the last is done", [row], args.json)
    return ExitCode.DONE


class _Bench:
    """Sweeps of the same training on one cluster, one at a time; all members at once where Slurm has room."""

    def __init__(self, folder: Path, conf: str, members: int) -> None:
        self._folder, self._members = folder, members
        self._env = os.environ | {"SLURM_CONF": conf, "OMP_NUM_THREADS": "1"}
        self._seeds = f"trainer.seed=range(0,{members})"

    def warm_up(self) -> None:
        """Make the data once, which all sides read."""
        self._call(sys.executable, "-m", "launcher.run", *TINY, "launch.name=warm", "trainer.seed=99999")

    def packed(self, workers: int) -> float:
        """Seconds of the sweep with ``launch.pack``."""
        start = time.perf_counter()
        words = ["launcher.run", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low"]
        words += ["hydra.launcher.cpus_per_task=1", "launch.name=packed", f"launch.pack={-(-self._members // workers)}"]
        self._call(sys.executable, "-m", *words, *TINY, self._seeds)
        self._until_idle()
        seconds = time.perf_counter() - start
        self._require_done("packed")
        return seconds

    def stock(self) -> float:
        """Seconds of the sweep with hydra-submitit-launcher, which waits for its jobs."""
        start = time.perf_counter()
        words = ["sweeps.bench.stock_train_app", "-m", "hydra/launcher=submitit_slurm", "hydra/sweeper=basic"]
        words += [f"hydra.sweep.dir={self._folder}/stock", "hydra.launcher.partition=low", "launch.name=stock"]
        words += ["hydra.launcher.cpus_per_task=1", f"launch.root={self._folder}/runs"]
        self._call(sys.executable, "-m", *words, *TINY, self._seeds)
        self._until_idle()
        seconds = time.perf_counter() - start
        self._require_done("stock")
        return seconds

    def bare_array(self) -> float:
        """Seconds of a job array of as many elements that run nothing."""
        start = time.perf_counter()
        self._call("sbatch", "-p", "low", f"--array=0-{self._members - 1}", "-c1", "-o", "/dev/null", "--wrap", "true")
        self._until_idle()
        return time.perf_counter() - start

    def _require_done(self, sweep: str) -> None:
        done = self._call(sys.executable, "-m", "launcher", "status", f"runs/{sweep}")
        if done.count("COMPLETED") < self._members:
            raise UserError(f"{sweep}: not all of {self._members} runs are COMPLETED: {done[-2000:]}")

    def _until_idle(self) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while self._call("squeue", "--noheader", "--format=%i").strip():
            if time.monotonic() > deadline:
                raise UserError(f"jobs still run after {_LIMIT_S:.0f} s")
            time.sleep(_POLL_S)  # another program's queue: there is no event to wait for

    def _call(self, *words: str) -> str:
        done = subprocess.run(words, cwd=self._folder, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{shlex.join(words[:5])}: {done.stdout[-500:]}{done.stderr[-2000:]}")
        return done.stdout
