"""What a worker imports before it forks, so that no member imports it again: 1.5 s of torch become milliseconds.

Imports only: a parent that has started a thread or touched a GPU must not be forked (torch docs, "Multiprocessing best
practices"; POSIX.1, fork(): of all threads the child has the calling one).
"""

from __future__ import annotations

import gc
import importlib
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from launcher.runtime.environment import drift
from launcher.runtime.hang_report import flight_recorder_env
from launcher.runtime.pack.child import Child
from launcher.runtime.plan import Plan
from launcher.runtime.task_config import resolve_name

_OF_EVERY_TASK = (
    "torch._dynamo",  # what the first optimizer of a process imports
    "launcher.runtime.checkpoint.saver",
    "launcher.runtime.fingerprint",
    "launcher.runtime.job",
    "launcher.runtime.resume",
    "launcher.runtime.session",
)
_NEVER_AHEAD = ("torch._inductor", "triton")
"""Modules that start processes or look for a GPU when they are imported."""
_ALONE: set[str] = set()
"""Modules that each member imports by itself."""


def preload(plan: Plan) -> None:
    """Import what runs of this task and its trackers need."""
    trackers = plan.settings().tracker
    modules = [*_OF_EVERY_TASK]
    modules += ["launcher.runtime.trackers.csv_files"] if trackers.csv else []
    modules += ["launcher.runtime.trackers.tensorboard"] if trackers.tensorboard else []
    modules += ["launcher.runtime.trackers.mlflow_run"] if trackers.mlflow else []
    modules += ["launcher.runtime.trackers.wandb_run"] if trackers.wandb else []
    for module in modules:
        importlib.import_module(module)
    resolve_name(plan.target)
    # What these take once, and keep.
    plan.config(), drift(plan.environment), flight_recorder_env(plan.rundir.path)
    _settle()


def preload_too(names: Iterable[str]) -> None:
    """Import what a member had to import by itself. What cannot be imported here, or starts a thread, is left to them.

    It is tried in a child first: a thread could not be taken back.
    """
    new = [name for name in names if not (name in sys.modules or name in _ALONE or name.startswith(_NEVER_AHEAD))]
    if not new:
        return
    if Child(lambda stop: _trial(new)).reap() == 0:
        _import(new)
        _settle()
    _ALONE.update(name for name in new if name not in sys.modules)


def _import(names: Iterable[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(Exception):  # made by hand (torch.ops…), or of use in a run alone
                importlib.import_module(name)


def _trial(names: Iterable[str]) -> int:
    """In a child, which begins with one thread: whether it still has one."""
    _import(names)
    return 0 if len(list(Path("/proc/self/task").iterdir())) == 1 else 1


def _settle() -> None:
    """Keep the garbage collector of the children off these pages, which they share with the parent (gc.freeze)."""
    gc.collect()
    gc.freeze()
