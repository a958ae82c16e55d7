"""torch.profiler over windows of steps: when it records, and what becomes of what it recorded.

The session tells it each step that is done; outside a window that is one comparison. A trace is written on a thread of
its own, and whatever goes wrong is said once and ends the profiling, never the training.
"""

from __future__ import annotations

import gzip
import logging
import shutil
import sys
import threading
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import ProfilerSettings
from launcher.runtime.trace.events import STEP
from launcher.runtime.world import World

log = logging.getLogger(__name__)

_NEVER = sys.maxsize
_LAST_WRITE_S = 1.0
"""How long a run that is stopped waits for its last trace: what is left of the grace belongs to the save."""
_MEMORY_EVENTS = 100_000
"""Allocations that a snapshot of the GPU's memory goes back at most."""
_COMPRESSION = 4


class _Phase(Enum):
    WAITING = 0
    WARM = 1
    RECORDING = 2


class StepProfiler:
    """Records windows of steps: ``wait`` steps, ``warmup`` steps, a trace of ``active`` steps, ``repeat`` times.

    On a rank that is not to record, and with ``profiler=off``, it does nothing.
    """

    def __init__(self, settings: ProfilerSettings, rundir: RunDir, world: World, attempt: int) -> None:
        self._settings, self._rundir, self._world, self._attempt = settings, rundir, world, attempt
        self._next = _NEVER
        """The step after which there is something to do."""
        self._phase = _Phase.WAITING
        self._left = settings.repeat or _NEVER
        self._until = 0
        self._profile: Any = None
        self._step: Any = None
        self._writer: threading.Thread | None = None
        self._failed = False
        self._cut: int | None = None
        """The last step of a window that a stop has cut off."""

    def begin(self, step: int) -> None:
        """The first step after this will be ``step + 1``."""
        if self._settings.kind == "steps" and self._world.rank in self._settings.ranks:
            self._next = step + self._settings.wait
            self.at(step)

    def at(self, step: int, *, last: bool = False) -> None:
        """``step`` is done; ``last``: no other comes, and what the open window holds so far is all of it.

        That is not written before ``close``: the state that is being saved comes first.
        """
        if step < self._next and not last:  # all that a step costs outside of a window
            return
        try:
            self._advance(step, last)
        except Exception as error:  # a training must not end because it is looked at
            self._fail(error)

    def close(self, timeout_s: float = _LAST_WRITE_S) -> None:
        """Stop recording, and wait so long for a trace that is being written; a longer write is given up."""
        self._next = _NEVER
        if self._cut is not None:
            try:
                self._finish(self._cut)
            except Exception as error:  # see ``at``
                self._fail(error)
        elif self._phase is not _Phase.WAITING:
            with suppress(Exception):  # of a window that nobody will read
                self._stop()
        if self._writer is not None:
            self._writer.join(timeout_s)
            self._writer = None

    def _advance(self, step: int, last: bool) -> None:
        settings = self._settings
        if self._failed:  # on the thread, while the next window was begun
            self.close(0)
        if self._phase is _Phase.RECORDING:
            if self._cut is not None:
                return
            self._end_step()
            if last and step < self._until:
                self._cut = step
                return
            if step < self._until:
                self._begin_step(step)
                return
            self._finish(step)
        if last or self._failed:
            self._next = _NEVER
            if self._phase is _Phase.WARM:
                self._stop()
            return
        if self._phase is _Phase.WAITING and step >= self._next:
            if torch.autograd.profiler._is_profiler_enabled:  # there is one in a process; to begin would end theirs
                raise RuntimeError("the task uses torch's profiler itself")
            self._profile = self._made()
            self._profile.prepare_trace()
            self._phase, self._next = _Phase.WARM, step + settings.warmup
        if self._phase is _Phase.WARM and step >= self._next:
            if settings.memory and self._on_gpu:
                torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
            self._profile.start_trace()
            self._phase, self._until = _Phase.RECORDING, step + settings.active
            self._begin_step(step)

    @property
    def _on_gpu(self) -> bool:
        return self._world.device.startswith("cuda")

    def _made(self) -> Any:
        settings, kinds = self._settings, [torch.profiler.ProfilerActivity.CPU]
        if self._on_gpu:
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        # The lower of torch's two documented interfaces: the schedule is ours, so that steps have the run's numbers.
        return torch.profiler._KinetoProfile(  # type: ignore[attr-defined]
            activities=kinds,
            record_shapes=settings.shapes,
            with_stack=settings.stacks,
            with_flops=settings.flops,
            profile_memory=settings.memory,
        )

    def _begin_step(self, step: int) -> None:
        self._step = torch.profiler.record_function(f"{STEP}{step + 1}")
        self._step.__enter__()
        self._next = step + 1

    def _end_step(self) -> None:
        named, self._step = self._step, None
        named.__exit__(None, None, None)

    def _stop(self) -> Any:
        """The profile, which records no longer."""
        self._cut = None
        profile, self._profile, self._step = self._profile, None, None
        was, self._phase = self._phase, _Phase.WAITING
        if was is _Phase.WARM:
            profile.start_trace()  # torch stops only what has begun
        profile.stop_trace()
        return profile

    def _finish(self, step: int) -> None:
        """The window ends with ``step``: write it, and say when the next one begins."""
        self._cut = None
        snapshot = self._settings.memory and self._on_gpu
        profile = self._stop()
        self._left -= 1
        self._next = step + self._settings.wait if self._left > 0 else _NEVER
        if self._writer is not None:
            self._writer.join()  # one at a time; windows are further apart than a write takes, unless wait=0
        self._rundir.traces.mkdir(exist_ok=True)
        if snapshot:
            torch.cuda.memory._dump_snapshot(str(self._rundir.memory_snapshot(self._world.rank, step, self._attempt)))
            torch.cuda.memory._record_memory_history(enabled=None)
        target = self._rundir.trace(self._world.rank, step, self._attempt)
        self._writer = threading.Thread(target=self._write, args=(profile, target), name="trace", daemon=True)
        self._writer.start()

    def _write(self, profile: Any, target: Path) -> None:
        """On the thread: the trace, compressed, under its name only when it is whole."""
        try:
            write_trace(profile, target)
        except Exception as error:  # the thread's edge: told, never lost
            self._fail(error, stop=False)

    def _fail(self, error: Exception, *, stop: bool = True) -> None:
        """Say what went wrong, once, and record no more."""
        self._next = _NEVER
        if not self._failed:
            log.warning("the profiler has stopped, the training goes on: %s: %s", type(error).__name__, error)
        self._failed = True
        if stop and self._phase is not _Phase.WAITING:
            with suppress(Exception):  # what made it fail is told
                self._stop()


def write_trace(profile: Any, target: Path) -> None:
    """Write what ``profile`` recorded to ``target``, gzipped; a crash leaves no half of it under that name.

    Raises:
        OSError: it cannot be written.
    """
    plain = target.with_name(f".{target.name}.plain.tmp")
    packed = target.with_name(f".{target.name}.packed.tmp")
    try:
        profile.export_chrome_trace(str(plain))
        with plain.open("rb") as source:
            _require_whole(source)
            with gzip.open(packed, "wb", _COMPRESSION) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        packed.replace(target)
    finally:
        plain.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)


def _require_whole(file: Any) -> None:
    """Torch does not tell of a disk that is full."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 16))
    if not file.read().rstrip().endswith(b"}"):
        raise OSError(f"only {end} bytes of the trace could be written; is the disk full?")
    file.seek(0)
