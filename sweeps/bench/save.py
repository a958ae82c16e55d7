"""What saving costs the training loop, and how quickly a state is back, against torch.save and torch.load."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launcher.runtime.errors import ExitCode
from launcher.runtime.world import tunables
from sweeps.bench.report import interleaved, ratio, say
from sweeps.bench.step import make_batch, make_trainer

NAME = "save"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and on which disk."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (default: the temporary one)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--text", type=int, default=32, help="tokens of a caption (32)")
    parser.add_argument("--every", type=int, nargs="*", default=[5, 50], help="steps between saves (5 50)")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls, and blocks of steps, of each side (9)")


def run(args: argparse.Namespace) -> int:
    """Print the disk's own speed, the stall of a save, what saving each so many steps costs, and the restore."""
    os.environ["GLIBC_TUNABLES"] = tunables(
        os.environ.get("GLIBC_TUNABLES")
    )  # a process of its own, started as a job's
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(_run, args).result()


def _run(args: argparse.Namespace) -> int:
    args.compile = False
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        bench = _Bench(args, Path(folder))
        say("save: the disk, a flat write and fsync of the state", [bench.disk()], args.json)
        say("save: how long the training loop waits for one save", [bench.stall()], args.json)
        if args.every:
            say("save: steps with saves against steps without", [bench.cadence(n) for n in args.every], args.json)
        say("save: a state back in memory, checksums verified", [bench.restore()], args.json)
    return ExitCode.DONE


class _Bench:
    """A training loop of model=seemore in fp32 with a session that writes into ``folder``."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._rounds, self._folder = args.rounds, folder
        self._trainer = make_trainer(args, 0.0, "fp32")
        self._data = SimpleNamespace(micro_batches=[make_batch(args)], n_targets=args.batch * args.text)
        self._session = open_session(folder / "run", self._trainer.world)
        self._session.restore()
        self._on_gpu = args.device.startswith("cuda")
        self._step = 0
        for _ in range(3):
            self.step()
        self.save()  # the memory for the copy is made with the first one
        self._session.settle()

    def step(self) -> None:
        """One optimizer step."""
        self._trainer.train_step(self._step, self._data)
        self._step += 1

    def save(self) -> None:
        """Offer a state that is due."""
        self._session.save(self._state() | {"step": self._step})

    def disk(self) -> dict[str, Any]:
        """Seconds of a plain write and fsync of as many bytes, and of five steps."""
        data = memoryview(bytes(self._n_bytes()))
        writes = [self._timed(lambda: _write(self._folder / "flat", data)) for _ in range(self._rounds)]
        steps = [self._timed(self._five_steps) for _ in range(self._rounds)]
        return {
            "megabytes": len(data) / 1e6,
            "write_fsync_ms": 1e3 * statistics.median(writes),
            "five_steps_ms": 1e3 * statistics.median(steps),
        }

    def stall(self) -> dict[str, Any]:
        """A save against ``torch.save`` of the same state, and against one copy of as many bytes."""
        import torch

        ours, torchs, copies = [], [], []
        source = torch.ones(self._n_bytes(), dtype=torch.uint8)
        target = torch.zeros_like(source)
        for _ in range(self._rounds):
            self.step()
            ours.append(self._timed(self.save))
            self._session.settle()
            state = {name: value.state_dict() for name, value in self._objects().items()}
            torchs.append(self._timed(lambda: torch.save(state, self._folder / "state.pt")))  # noqa: B023
            os.sync()  # what the kernel has yet to write of it would slow down whatever is timed next
            copies.append(self._timed(lambda: target.copy_(source)))
        return {
            "ours_ms": 1e3 * statistics.median(ours),
            "torch_save_ms": 1e3 * statistics.median(torchs),
            "memcpy_ms": 1e3 * statistics.median(copies),
            "times_less_than_torch_save": ratio(torchs, ours),
            "memcpys": ratio(ours, copies),
        }

    def cadence(self, every: int) -> dict[str, Any]:
        """Blocks of steps with a save each ``every`` steps, taking turns with blocks of as many steps without."""
        length = max(25, every)

        def block(*, saving: bool) -> None:
            for place in range(length):
                self.step()
                if saving and place % every == 0:  # the last save of a block ends within it
                    self.save()
            self._synchronize()

        with_saves, without = interleaved(lambda: block(saving=True), lambda: block(saving=False), self._rounds)
        return {
            "every": every,
            "steps_without_ms": 1e3 * statistics.median(without) / length,
            "steps_with_ms": 1e3 * statistics.median(with_saves) / length,
            "slower_percent": 100 * (ratio(with_saves, without) - 1),
        }

    def restore(self) -> dict[str, Any]:
        """``load`` with all its checks against ``torch.load`` of the same state, both from the page cache."""
        import torch

        from launcher.runtime.checkpoint.reading import load

        self.save()
        self._session.settle()
        newest = self._session.rundir.list_checkpoints("step")[0]
        torch.save({name: value.state_dict() for name, value in self._objects().items()}, self._folder / "state.pt")
        plain, ours = interleaved(
            lambda: torch.load(self._folder / "state.pt", weights_only=True), lambda: load(newest), self._rounds
        )
        return {
            "torch_load_ms": 1e3 * statistics.median(plain),
            "ours_ms": 1e3 * statistics.median(ours),
            "times_faster": ratio(plain, ours),
        }

    def _five_steps(self) -> None:
        for _ in range(5):
            self.step()

    def _objects(self) -> dict[str, Any]:
        return {"model": self._trainer.model, "optimizer": self._trainer.optimizer}

    def _state(self) -> dict[str, Any]:
        return self._objects() | {"scaler": self._trainer.precision.scaler}

    def _n_bytes(self) -> int:
        tensors = list(self._trainer.model.state_dict().values())
        tensors += [t for state in self._trainer.optimizer.state.values() for t in state.values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _timed(self, call: Callable[[], Any]) -> float:
        self._synchronize()
        began = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - began

    def _synchronize(self) -> None:
        import torch

        if self._on_gpu:
            torch.cuda.synchronize()


def open_session(folder: Path, world: Any, trackers: Sequence[Any] = ()) -> Any:
    """A session on its own: every step that it is offered is saved, what it logs goes to ``trackers``."""
    from rich.console import Console

    from launcher.runtime.checkpoint.saver import Author, Saver
    from launcher.runtime.console import Meter
    from launcher.runtime.fingerprint import fingerprint
    from launcher.runtime.lease import Lease
    from launcher.runtime.profiler import StepProfiler
    from launcher.runtime.rundir import RunDir
    from launcher.runtime.session import Session
    from launcher.runtime.settings import CheckpointSettings, ProfilerSettings, Settings, TrackerSettings
    from launcher.runtime.signals import StopFlag

    checkpoint = CheckpointSettings(every_steps=1, keep_last=2, keep_every=None, at_end="state", best=False)
    rundir = RunDir(folder)
    author = Author(run_id="bench", attempt=1, lease=Lease(rundir.lease, ""), fingerprint=fingerprint(world))
    return Session(
        None,
        world,
        rundir,
        Settings(checkpoint=checkpoint, tracker=TrackerSettings()),
        restored=None,
        saver=Saver(rundir, checkpoint, world, author, None),
        stop=StopFlag(),
        meter=Meter(Console(stderr=True), visible=False),
        open_trackers=lambda step: [*trackers],
        hosts=[world.node],
        beat=lambda what: None,
        profiler=StepProfiler(ProfilerSettings(), rundir, world, 1),
    )


def _write(path: Path, data: memoryview) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
