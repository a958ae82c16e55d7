"""What all trackers together cost the training loop: CSV, TensorBoard, MLflow and W&B, told every tenth step."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launcher.runtime.errors import ExitCode
from launcher.tracking import require_installed
from sweeps.bench.report import interleaved, ratio, say

NAME = "trackers"
_LONG_S = 120.0
"""How long anything on a tracker's thread may take between two measurements."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--text", type=int, default=32, help="tokens of a caption (32)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a block (60)")
    parser.add_argument("--every", type=int, default=10, help="steps between logs (10)")
    parser.add_argument("--rounds", type=int, default=9, help="timed blocks of each side (9)")
    parser.add_argument("--threads", type=int, default=1, help="threads that a step computes with (1)")


def run(args: argparse.Namespace) -> int:
    """Print a step with and without trackers, and how long the loop itself waits for a log.

    A block with trackers has a picture among its logs. What they still have to do when it ends is done before the
    next block begins; a block is long enough that most of it falls within.
    """
    from launcher.runtime.settings import TrackerSettings

    chosen = TrackerSettings(csv=True, curves=False, tensorboard=True, mlflow=True, wandb=True, wandb_mode="offline")
    require_installed(chosen)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = _Bench(args, Path(folder) / "runs" / "bench" / "0123456789ab", chosen)
        bench.warm_up()
        with_trackers, without = bench.blocks(args.rounds)
        bench.close()
    step_ms = 1e3 * statistics.median(without) / args.steps
    log_ms = 1e3 * statistics.median(bench.log_s)
    row = {
        "step_ms": step_ms,
        "log_ms": log_ms,
        "log_with_picture_ms": 1e3 * statistics.median(bench.picture_s),
        "log_percent": 100 * log_ms / (args.every * step_ms),
        "slower_percent": 100 * (ratio(with_trackers, without) - 1),
    }
    title = f"{NAME}: csv, tensorboard, mlflow (SQLite), wandb (offline); each {args.every} steps, {args.device}"
    say(title, [row], args.json)
    return ExitCode.DONE


class _Bench:
    """Steps of model=seemore, and a session with all trackers."""

    def __init__(self, args: argparse.Namespace, folder: Path, chosen: Any) -> None:
        import numpy as np
        import torch

        from launcher.runtime.rundir import RunDir
        from launcher.runtime.trackers import About, start_trackers
        from launcher.runtime.trackers.queued import Beside
        from sweeps.bench.save import open_session
        from sweeps.bench.step import make_batch, make_trainer

        torch.set_num_threads(args.threads)
        args.compile = False
        self._args, self._step = args, 0
        self._trainer = make_trainer(args, 0.0, "fp32")
        self._data = SimpleNamespace(micro_batches=[make_batch(args)], n_targets=args.batch * args.text)
        self._picture = np.random.default_rng(0).integers(0, 256, (220, 400, 3), np.uint8)  # a sheet of captions
        folder.mkdir(parents=True)
        config = {"optim": {"lr": 1e-4}, "model": {"n_embd": 128}}
        trackers = start_trackers(chosen, About(RunDir(folder), config, config))
        (self._beside,) = (tracker for tracker in trackers if isinstance(tracker, Beside))
        self._session = open_session(folder, self._trainer.world, trackers)
        self._session.restore()
        self.log_s: list[float] = []
        self.picture_s: list[float] = []

    def warm_up(self) -> None:
        """Open everything, and compute what is computed once."""
        self.plain()
        self.tracked()
        self._idle()
        self.log_s, self.picture_s = [], []

    def plain(self) -> None:
        """A block of steps."""
        for _ in range(self._args.steps):
            float(self._trainer.train_step(self._step, self._data))
            self._step += 1

    def tracked(self) -> None:
        """The same with trackers that are told of some."""
        for index in range(1, self._args.steps + 1):
            loss = float(self._trainer.train_step(self._step, self._data))
            self._step += 1
            if index % self._args.every == 0:
                self._log(loss, with_picture=index == self._args.every)

    def blocks(self, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of blocks with trackers and without, which take turns."""
        with_trackers: list[float] = []
        without: list[float] = []
        for _ in range(rounds):
            tracked, plain = interleaved(self.tracked, self._idle, 1)[0], interleaved(self.plain, self._idle, 1)[0]
            with_trackers += tracked
            without += plain
        return with_trackers, without

    def _idle(self) -> None:
        """Wait until the trackers have done all that they were given."""
        until = time.monotonic() + _LONG_S
        for queue in self._beside.queues:
            queue.wait_idle(until)

    def close(self) -> None:
        """Let the trackers end."""
        self._session.close_trackers({})
        self._beside.wait()

    def _log(self, loss: float, *, with_picture: bool) -> None:
        phases = ("data", "forward", "backward", "optimizer", "total")
        values: dict[str, Any] = {"train/loss": loss, "train/lr": 1e-4, "train/epoch": self._step / 100}
        values |= {f"time/{phase}": 0.1 for phase in phases}
        values |= {"samples/captions": self._picture, "val/loss": loss} if with_picture else {}
        began = time.perf_counter()
        self._session.log(values, self._step)
        (self.picture_s if with_picture else self.log_s).append(time.perf_counter() - began)
