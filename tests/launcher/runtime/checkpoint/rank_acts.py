"""What one of several real ranks does with a saver and a search, act after act; prints what it found as JSON.

``python -m tests.launcher.runtime.checkpoint.rank_acts FOLDER``, RANK, WORLD_SIZE and a master's address in the
environment. Every rank plays the same acts in the same order; each has a folder of its own.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.distributed import from_all_ranks, from_main_rank, process_group
from launcher.runtime.errors import UserError
from launcher.runtime.resume import find
from launcher.runtime.rng import get_rng, set_rng
from launcher.runtime.rundir import RunDir
from launcher.runtime.world import World
from tests.launcher.runtime.saving import RUN_ID, author, flip, make_saver, same, save, steps, wish

Act = Callable[[Path, World], dict[str, Any]]


def own(world: World, step: int) -> dict[str, Any]:
    """A state of which each rank has the same model and parts of its own."""
    return {
        "step": step,
        "model": {"w": torch.full((4,), float(step))},
        "mine": {"seen": torch.arange(world.rank + 2) + 10 * step, "name": f"rank {world.rank}"},
    }


def told(saver: Any) -> dict[str, Any]:
    """What a rank knows after a save."""
    return {"failures": saver.failures, "error": saver.error, "committed": saver.committed}


@contextmanager
def failing(fails: bool, name: str = "os.write"):
    """The disk of this rank refuses, if it ``fails``."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch(name, side_effect=error) if fails else mock.patch("os.getuid", os.getuid):
        yield


def each_its_own(folder: Path, world: World) -> dict[str, Any]:
    """What each rank saved comes back to it, and what is equal is written once."""
    random.seed(world.rank)
    content = own(world, 3) | {"rng": get_rng()}
    expected = random.random()
    path = save(make_saver(folder, world=world), 3, content)
    from_all_ranks(None)
    found = find(RunDir(folder), RUN_ID, world, restart_if_damaged=False)
    assert found.restored is not None
    back = found.restored.content
    set_rng(back["rng"])
    return {
        "same": same(back, content),
        "random": random.random() == expected,
        "files": sorted(file.name for file in path.iterdir()),
        "new rank": load(path, rank=world.size)["mine"]["name"],
        "size": found.restored.manifest.world_size,
    }


def one_cannot_write(folder: Path, world: World) -> dict[str, Any]:
    """The last rank's disk is full: nobody commits, all know, and the next save is whole."""
    saver = make_saver(folder, world=world)
    save(saver, 1, own(world, 1))
    with failing(world.rank == world.size - 1):
        save(saver, 2, own(world, 2))
    said = {"second": told(saver), "there": from_main_rank(steps(folder))}
    save(saver, 3, own(world, 3))
    from_all_ranks(None)
    said |= {"third": told(saver), "then": steps(folder)}
    return said | {"same": same(load(RunDir(folder).checkpoint("step", 3, 1), world.rank), own(world, 3))}


def main_cannot(folder: Path, world: World) -> dict[str, Any]:
    """Rank 0 fails at each stage of its part: to make the folder, to write, to commit."""
    saver, said = make_saver(folder, world=world), []
    for step, name in enumerate(("os.mkdir", "os.write", "os.rename"), start=1):
        with failing(world.is_main, name):
            save(saver, step, own(world, step))
        said.append(told(saver))
    save(saver, 9, own(world, 9))
    from_all_ranks(None)
    return {"said": said, "last": told(saver), "there": steps(folder)}


def best_cannot(folder: Path, world: World) -> dict[str, Any]:
    """Rank 0 cannot write its best weights: the full state of the same step, which all write, is saved all the same."""
    saver, content = make_saver(folder, world=world), own(world, 1)
    wishes = [wish(1, content)]
    if world.is_main:
        wishes.insert(0, wish(1, {"model": 1}, "best", 0.5))
    with mock.patch.object(saver, "_save_by_main", side_effect=OSError(errno.EIO, "broken")):
        saver.start(content, wishes)
        saver.wait()
    from_all_ranks(None)
    said = {"committed": saver.committed, "failures": saver.failures, "there": steps(folder)}
    save(saver, 2, own(world, 2))
    from_all_ranks(None)
    return said | {"then": steps(folder)}


def not_finite(folder: Path, world: World) -> dict[str, Any]:
    """Weights that are not finite are known to all ranks and on no disk."""
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    saver = make_saver(folder, world=world)
    save(saver, 1, {"step": 1, "model": model})
    from_all_ranks(None)
    return {"not finite": saver.not_finite, "committed": saver.committed, "there": steps(folder)}


def superseded(folder: Path, world: World) -> dict[str, Any]:
    """Another attempt has the run: all ranks know after the next save."""
    saver = make_saver(folder, world=world)
    if world.is_main:
        author(folder, attempt=2)
    from_all_ranks(None)
    save(saver, 1, own(world, 1))
    from_all_ranks(None)
    return {"superseded": str(saver.superseded), "there": steps(folder)}


def other_steps(folder: Path, world: World) -> dict[str, Any]:
    """Ranks that do not save the same step commit nothing."""
    saver = make_saver(folder, world=world)
    save(saver, 1 + world.rank, own(world, 1 + world.rank))
    from_all_ranks(None)
    return {**told(saver), "there": steps(folder)}


def one_cannot_read(folder: Path, world: World) -> dict[str, Any]:
    """The last rank's file of the newest is damaged, and it cannot open the next: all take the third."""
    saver = make_saver(folder, world=world, keep_every=1)
    for step in (1, 2, 3):
        save(saver, step, own(world, step))
    from_all_ranks(None)
    last = world.size - 1
    if world.is_main:
        flip(RunDir(folder).checkpoint("step", 3, 1) / f"mine.rank{last:04d}.safetensors")
    from_all_ranks(None)
    hidden = RunDir(folder).checkpoint("step", 2, 1)
    real = os.open

    def not_here(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).parent == hidden:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **kwargs)

    with mock.patch("os.open", not_here if world.rank == last else real):
        found = find(RunDir(folder), RUN_ID, world, restart_if_damaged=False)
    assert found.restored is not None
    from_all_ranks(None)
    if world.is_main:
        for step in (1, 2):
            flip(RunDir(folder).checkpoint("step", step, 1) / "model.safetensors")
    from_all_ranks(None)
    try:
        find(RunDir(folder), RUN_ID, world, restart_if_damaged=False)
        refused = ""
    except UserError as error:
        refused = str(error)
    same_state = same(found.restored.content, own(world, 1))
    return {"step": found.restored.manifest.step, "same": same_state, "problems": found.problems, "refused": refused}


ACTS: tuple[Act, ...] = (
    each_its_own, one_cannot_write, main_cannot, best_cannot, not_finite, superseded, other_steps, one_cannot_read,
)  # fmt: skip


def main() -> None:
    """Play all acts as the rank that the environment names."""
    world, said = World.from_env(os.environ, "cpu"), {}
    with process_group(world):
        for act in ACTS:
            folder = Path(sys.argv[1]) / act.__name__
            folder.mkdir(exist_ok=True)
            from_all_ranks(None)
            said[act.__name__] = act(folder, world)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
