"""Submitting a sweep to a real slurmctld, from the command to the last receipt, against stock hydra-submitit."""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.files import read_json_lines
from launcher.runtime.sweepdir import SweepDir
from sweeps.bench.disposable import cluster
from sweeps.bench.report import say

NAME = "submit"
_GROUPS = ("optim=adam,adamw", "schedule=cosine,constant")
"""Two swept groups of two options each; the rest of the members differ in their seed."""
_HOLD = "+hydra.launcher.additional_parameters.hold=true"
"""Nothing starts: what is measured is submitting."""
_STOCK_LIMIT_S = 900.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--members", type=int, default=1000, help="members of the sweep, a multiple of four (1000)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="submissions of ours, and as many of four times as many (3)"
    )
    parser.add_argument("--stock-rounds", type=int, default=1, help="submissions of stock hydra-submitit-launcher (1)")
    parser.add_argument("--slurm-conf", help="the cluster; without it a disposable one is started")


def run(args: argparse.Namespace) -> int:
    """Print seconds of both, their ratio, the growth at four times as many members, and the calls of sbatch."""
    if args.members % 4:
        raise UserError(f"--members {args.members}: should be a multiple of four")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, cluster(args.slurm_conf) as conf:
        bench = _Bench(Path(folder), conf)
        ours, four_times, stock = [], [], []
        for index in range(max(args.rounds, args.stock_rounds)):
            if index < args.rounds:
                four_times.append(bench.ours(4 * args.members))
                bench.looks.pop()
                ours.append(bench.ours(args.members))
            if index < args.stock_rounds:
                stock.append(bench.stock(args.members))
        seconds = statistics.median(ours)
        row: dict[str, Any] = {"members": args.members, "ours_s": seconds, "sbatch_calls": bench.calls[-1]}
        row["four_times_as_many_s"] = statistics.median(four_times)
        row["status_s"] = statistics.median(bench.looks)
        row["growth"] = statistics.median(more / less for more, less in zip(four_times, ours, strict=True))
        if stock:
            row |= {"stock_s": statistics.median(stock), "times_faster": statistics.median(stock) / seconds}
        say(f"{NAME}: a sweep, two swept groups and seeds", [row], args.json)
    return ExitCode.DONE


class _Bench:
    """Sweeps submitted from folders of their own to one cluster, held there, and cancelled."""

    def __init__(self, folder: Path, slurm_conf: str) -> None:
        self._folder, self._conf, self._count = folder, slurm_conf, 0
        self.looks: list[float] = []
        """Seconds of ``python -m launcher status`` on the smaller sweeps of ours."""
        self.calls: list[int] = []
        """Calls of sbatch, ``--test-only`` aside, of each sweep of ours."""

    def ours(self, members: int) -> float:
        """Seconds of ``python -m launcher.run -m hydra/launcher=submitit_slurm …``; ``status`` is timed beside it."""
        cwd = self._new_folder()
        words = ["launcher.run", "-m", "hydra/launcher=submitit_slurm", "launch.name=bench", *_grid(members)]
        start = time.perf_counter()
        self._python(cwd, *words)
        seconds = time.perf_counter() - start
        sweep = SweepDir(cwd / "runs" / "bench")
        start = time.perf_counter()
        self._python(cwd, "launcher", "status", str(sweep.path))
        self.looks.append(time.perf_counter() - start)
        self.calls.append(sum(event["event"] == "intent" for event in read_json_lines(sweep.submissions)))
        self._cancel(members)
        return seconds

    def stock(self, members: int) -> float:
        """Seconds until Slurm has the array of stock hydra-submitit-launcher, which itself goes on waiting."""
        cwd = self._new_folder()
        words = ["sweeps.bench.stock_app", "-m", "hydra/launcher=submitit_slurm", "hydra/sweeper=basic"]
        words += [f"hydra.sweep.dir={cwd}/sweep", *_grid(members)]
        start = time.perf_counter()
        command = self._words(sys.executable, "-m", *words)
        with (cwd / "said").open("wb") as said, subprocess.Popen(command, cwd=cwd, stdout=said, stderr=said) as process:
            try:
                while self._queued() < members:
                    if process.poll() is not None or time.perf_counter() - start > _STOCK_LIMIT_S:
                        raise UserError(f"stock hydra-submitit-launcher: {(cwd / 'said').read_text()[-2000:]}")
                    time.sleep(0.1)  # another program's queue: there is no event to wait for
                seconds = time.perf_counter() - start
            finally:
                process.kill()
        self._cancel(members)
        return seconds

    def _new_folder(self) -> Path:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder

    def _python(self, cwd: Path, *words: str) -> None:
        command = self._words(sys.executable, "-m", *words)
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{shlex.join(words[:4])}: {done.stderr[-2000:]}")

    def _queued(self) -> int:
        answer = subprocess.run(
            self._words("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i"),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return len(answer.stdout.split())

    def _cancel(self, members: int) -> None:
        if (queued := self._queued()) != members:
            raise UserError(f"{queued} jobs are queued instead of {members}: is the cluster used by others?")
        subprocess.run(self._words("scancel", "--state=PENDING"), check=True)
        while self._queued():
            time.sleep(0.1)

    def _words(self, *words: str) -> list[str]:
        return ["env", f"SLURM_CONF={self._conf}", *words]


def _grid(members: int) -> list[str]:
    return [*_GROUPS, f"trainer.seed=range(0,{members // 4})", "hydra.launcher.partition=low", _HOLD]
