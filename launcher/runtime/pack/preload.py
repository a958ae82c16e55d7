"""What a worker imports before it forks, so that no member imports it again: 1.5 s of torch become milliseconds.

Imports only: a parent that has started a thread or touched a GPU must not be forked (torch docs, "Multiprocessing best
practices"; POSIX.1, fork(): of all threads the child has the calling one).
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import warnings
from collections.abc import Iterable

from launcher.runtime.environment import drift
from launcher.runtime.plan import Plan, resolve_name

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


def preload(plan: Plan) -> None:
    """Import what runs of this task and its trackers need."""
    trackers = plan.settings().tracker
    modules = [*_OF_EVERY_TASK]
    modules += ["launcher.runtime.trackers.csv_files"] if trackers.csv else []
    modules += ["launcher.runtime.trackers.tensorboard"] if trackers.tensorboard else []
    for module in modules:
        importlib.import_module(module)
    resolve_name(plan.target)
    plan.config(), drift(plan.environment)  # what reading a config and the list of packages take once, and keep
    _settle()


def preload_too(names: Iterable[str]) -> None:
    """Import what a member had to import by itself. One that cannot be imported here is left to the members."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name not in sys.modules and not name.startswith(_NEVER_AHEAD):
                try:
                    importlib.import_module(name)
                except Exception:
                    continue  # made by hand (torch.ops…), or of use in a run alone
                if threading.active_count() > 1:
                    raise RuntimeError(f"importing {name} started a thread: members cannot be forked any more")
    _settle()


def _settle() -> None:
    """Keep the garbage collector of the children off these pages, which they share with the parent (gc.freeze)."""
    gc.collect()
    gc.freeze()
