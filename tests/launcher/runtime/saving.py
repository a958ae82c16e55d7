"""Checkpoints made for tests, by the saver that an attempt would make them with."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.runtime.checkpoint.saver import Author, Saver, Wish
from launcher.runtime.files import write_json
from launcher.runtime.lease import Lease
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import CheckpointSettings
from launcher.runtime.world import World

RUN_ID = "0123456789ab"
CADENCE = {"every_steps": None, "keep_last": 2, "keep_every": None, "at_end": "state", "best": True}


def cadence(**changes: Any) -> CheckpointSettings:
    """Settings that differ from the usual by ``changes``."""
    return CheckpointSettings(**CADENCE | changes)


def author(folder: Path, attempt: int = 1, run_id: str = RUN_ID) -> Author:
    """Who writes as the attempt that holds the lease of the run in ``folder``, from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(RunDir(folder).lease, f"token{attempt}")
    write_json(lease.path, {"token": lease.token, "attempt": attempt, "host": "here"})
    return Author(run_id=run_id, attempt=attempt, lease=lease, fingerprint={"threads": torch.get_num_threads()})


def make_saver(
    folder: Path,
    attempt: int = 1,
    *,
    world: World | None = None,
    restored: Path | None = None,
    run_id: str = RUN_ID,
    **changes: Any,
) -> Saver:
    """The saver of an attempt that has just taken the run in ``folder``."""
    world = world or World()
    who = author(folder, attempt, run_id) if world.is_main else Author(
        run_id=run_id, attempt=attempt, lease=Lease(RunDir(folder).lease, ""), fingerprint={}
    )  # fmt: skip
    return Saver(RunDir(folder), cadence(**changes), world, who, restored)


def state(step: int) -> dict[str, Any]:
    """A small state each part of which says its step."""
    return {"step": step, "model": {"w": torch.full((3, 2), float(step)), "b": torch.full((2,), step)}, "words": "ab"}


def wish(step: int, content: Mapping[str, Any], kind: str = "step", metric: float | None = None) -> Wish:
    """A checkpoint of all of ``content``."""
    return Wish(kind=kind, step=step, entries=frozenset(content), metric=metric)


def save(
    saver: Saver,
    step: int,
    content: Mapping[str, Any] | None = None,
    *,
    kind: str = "step",
    metric: float | None = None,
) -> Path:
    """Save and wait for it; where it would stand, whether it does or not."""
    content = state(step) if content is None else content
    saver.start(content, [wish(step, content, kind, metric)])
    saver.wait()
    return saver._rundir.checkpoint(kind, step, saver._author.attempt)


def begin(folder: Path, attempt: int, origin: Path | str | None) -> None:
    """Write that ``attempt`` starts from the checkpoint ``origin``."""
    name = origin.name if isinstance(origin, Path) else origin
    RunDir(folder).add_attempt_event(event="start", attempt=attempt, **{"from": name})


def steps(folder: Path, kind: str = "step") -> list[int]:
    """Steps of the checkpoints that are there, newest first."""
    return [int(path.name.split("-")[1].split(".")[0]) for path in RunDir(folder).list_checkpoints(kind)]


def litter(folder: Path) -> set[str]:
    """What lies among the checkpoints and is none."""
    rundir = RunDir(folder)
    committed = {path for kind in ("step", "best", "final") for path in rundir.list_checkpoints(kind)}
    return {path.name for path in rundir.checkpoints.iterdir() if path not in committed and path != rundir.latest}


def flip(path: Path, index: int | None = None, bit: int = 0) -> None:
    """Change one bit of a file, by default in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if index is None else index] ^= 1 << bit
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Leave nothing of a file."""
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    """Add a byte to a file."""
    with path.open("ab") as file:
        file.write(b"\0")


DAMAGES: tuple[Callable[[Path], None], ...] = (flip, truncate, empty, lengthen, Path.unlink)


class Gate:
    """An ``os.fsync`` that says when it is reached, and waits to be let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._real = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.reached.set()
        assert self.open.wait(60)
        self._real(descriptor)


def same(one: Any, two: Any) -> bool:
    """Whether two states are equal: kinds, dtypes and bits, NaN being equal to itself."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(two, torch.Tensor)
            and (one.dtype, one.shape) == (two.dtype, two.shape)
            and _bytes(one) == _bytes(two)
        )
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        pairs: Iterator[Any] = zip(one.items(), two.items(), strict=False)
        return len(one) == len(two) and all(same(a, b) for a, b in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if hasattr(one, "dtype"):
        return (one.dtype, one.shape) == (two.dtype, two.shape) and one.tobytes() == two.tobytes()
    return bool(one == two) or (one != one and two != two)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
