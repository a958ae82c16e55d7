"""Two ranks that train one model=seemore together against two processes that each train their own: weak scaling."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launcher.runtime.errors import ExitCode
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from sweeps.bench.report import say

NAME = "ranks"
_SIDES = ("apart", "together")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--ranks", type=int, default=2, help="processes on each side, of one thread each (2)")
    parser.add_argument("--batch", type=int, default=16, help="samples of a rank's step (16)")
    parser.add_argument("--text", type=int, default=32, help="tokens of a caption (32)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn (3)")
    parser.set_defaults(device="cpu", compile=False)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side (15)")


def run(args: argparse.Namespace) -> int:
    """Print samples a second of both sides, and which share of the speed is left once the processes talk."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {side: _start(args, side, folder, stack) for side in _SIDES}
        for side in (*_SIDES, *_SIDES):
            _turn(sides[side], 2)  # warm
        rates: dict[str, list[float]] = {side: [] for side in _SIDES}
        for _ in range(args.rounds):
            for side in _SIDES:
                rates[side].append(sum(args.batch * args.steps / s for s in _turn(sides[side], args.steps)))
    row = {
        "ranks": args.ranks,
        "precision": args.precision,
        "apart_samples_per_s": statistics.median(rates["apart"]),
        "together_samples_per_s": statistics.median(rates["together"]),
        "efficiency": statistics.median(t / a for a, t in zip(rates["apart"], rates["together"], strict=True)),
    }
    say(f"{NAME}: model=seemore, batch {args.batch} a rank, one thread each, gloo", [row], args.json)
    return ExitCode.DONE


def _start(args: argparse.Namespace, side: str, folder: Path, stack: ExitStack) -> list[Connection]:
    """Processes of one side, ready to step, each at the other end of a pipe."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(args.ranks):
        ours, theirs = context.Pipe()
        process = context.Process(target=_member, args=(args, side, rank, str(folder), theirs), daemon=True)
        process.start()
        theirs.close()
        stack.callback(process.join, 30)
        pipes.append(ours)
    for pipe in pipes:  # all of them before any is waited for: ranks leave together
        stack.callback(pipe.close)
    for pipe in pipes:
        pipe.recv()
    return pipes


def _turn(pipes: list[Connection], steps: int) -> list[float]:
    """Seconds that each process of a side takes for ``steps``, all at once; the other side waits meanwhile."""
    for pipe in pipes:
        pipe.send(steps)
    return [pipe.recv() for pipe in pipes]


def _member(args: argparse.Namespace, side: str, rank: int, folder: str, pipe: Connection) -> None:
    """One process: as many steps as the pipe says, until it closes."""
    import torch

    from launcher.runtime.distributed import Agreement, process_group
    from launcher.runtime.rendezvous import Verdict, announce, attend
    from launcher.runtime.rundir import RunDir

    torch.set_num_threads(1)
    world = World()
    if side == "together":
        world = World(rank=rank, size=args.ranks, local_rank=rank, source="submitit", incarnation="bench")
    place = RunDir(Path(folder))
    meeting = announce(world, place, Verdict(attempt=1), None) if world.is_main else attend(world, place, StopFlag())
    with process_group(world, meeting.store):
        step = _stepper(args, world, Agreement([0.0]))
        pipe.send("ready")
        while True:
            try:
                steps = pipe.recv()
            except EOFError:
                break
            start = time.perf_counter()
            for _ in range(steps):
                step()
            pipe.send(time.perf_counter() - start)


def _stepper(args: argparse.Namespace, world: World, agreement: Any) -> Any:
    """What the training loop does in a step: compute it, look at its loss, ask whether to stop."""
    from sweeps.bench.step import make_batch, make_trainer

    trainer = make_trainer(args, args.dropout, args.precision, world)
    data = SimpleNamespace(micro_batches=[make_batch(args)], n_targets=args.batch * args.text * world.size)

    def step() -> None:
        trainer.watch.add(1, trainer.train_step(0, data))
        agreement.largest([0.0])

    return step
