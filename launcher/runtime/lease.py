"""Who may write in a run directory: one attempt at a time, also where an earlier one does not know that it is over.

A lock keeps out a second process of the same machine (and of others, where the file system shares locks). The lease
names the attempt that holds the run; each attempt replaces it before it reads any state, and looks at it before each
commit. A process that Slurm gave up for lost, and that lives on, finds another name there and ends.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, InUse, Stopped, UserError
from launcher.runtime.files import write_json
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World

CHECK_S = 2.0
"""How often the holder looks whether it still is."""
FENCE_S = 10.0
"""How long a new holder waits for one that may live on to see that it is over."""
_LOCK_S = 0.5
_POLL_S = 0.1


class Superseded(UserError):
    """Another attempt has taken the run over: this one ends, and leaves everything as it is."""

    code = ExitCode.STOPPED_NOT_SAVED


@dataclass(frozen=True)
class Lease:
    """The right to commit, until another attempt takes it."""

    path: Path
    token: str

    def lost_to(self) -> str | None:
        """Who holds the run instead; None: this attempt does. Where the file cannot be read nobody is said to."""
        holder = _read(self.path)
        if holder is None or holder.get("token") == self.token:
            return None
        return f"attempt {holder.get('attempt')} on {holder.get('host')} has taken the run over"

    def require(self) -> None:
        """See that this attempt still holds the run.

        Raises:
            Superseded: it does not.
        """
        if (other := self.lost_to()) is not None:
            raise Superseded(other)


def take(rundir: RunDir, world: World, stop: StopFlag, stack: ExitStack) -> Callable[[int], Lease]:
    """Hold the run's lock until ``stack`` ends; what is returned takes the lease for an attempt, once it has a number.

    A start of the same job that Slurm requeued goes before an earlier start of it, which Slurm knows to be lost.

    Raises:
        UserError: another process trains the run.
        Stopped: ``stop`` was set while it was waited whether an earlier holder lives on; from what is returned, too.
    """
    left: int | None = None
    try:
        _hold_lock(rundir, stack)
        before = _read(rundir.lease)
    except UserError as error:
        before = _read(rundir.lease)
        if before is None or not _is_earlier_start(before, world):
            raise InUse(f"{error}{_of(before)}") from None
        left = os.open(rundir.lock_file, os.O_RDONLY)
        rundir.lock_file.unlink()  # the one that lives on keeps the lock of a file that nobody sees any more
        stack.enter_context(rundir.lock())
    if left is None and before is not None and _may_live_elsewhere(rundir, before):
        if not _is_earlier_start(before, world) and _moves(rundir, stop):
            raise InUse(f"run {rundir.path}: another process is training it{_of(before)}; wait for it or stop it")
        left = -1
    return lambda attempt: _take(rundir, world, attempt, left, stop)


def _hold_lock(rundir: RunDir, stack: ExitStack) -> None:
    """Tried for a moment: who only asks whether a run is locked holds the lock for an instant, too."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            stack.enter_context(rundir.lock())
            return
        except UserError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)


def next_attempt(rundir: RunDir) -> int:
    """A number that no attempt had before, not even one that died before it wrote that it starts."""
    records = [*rundir.attempt_events(), _read(rundir.lease) or {}]
    return 1 + max((int(record.get("attempt") or 0) for record in records), default=0)


def _take(rundir: RunDir, world: World, attempt: int, left: int | None, stop: StopFlag) -> Lease:
    lease = Lease(rundir.lease, secrets.token_hex(8))
    holder = {
        "token": lease.token,
        "attempt": attempt,
        "job_id": world.job_id,
        "restarts": world.restarts,
        "host": world.node,
        "boot": _boot(),
        "pid": os.getpid(),
    }
    write_json(rundir.lease, holder)
    if left is not None:
        _wait_for_its_end(left, stop)
    return lease


def _wait_for_its_end(left: int, stop: StopFlag) -> None:
    """Until whoever holds the lock behind descriptor ``left`` (-1: cannot be seen) is gone, at most ``FENCE_S``."""
    deadline = time.monotonic() + FENCE_S
    try:
        while time.monotonic() < deadline and not (left >= 0 and _is_free(left)):
            _pause(stop)
    finally:
        if left >= 0:
            os.close(left)


def _is_free(descriptor: int) -> bool:
    """Whether nobody holds the lock of a file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_earlier_start(holder: dict[str, Any], world: World) -> bool:
    same_job = world.job_id is not None and holder.get("job_id") == world.job_id
    return same_job and world.source == "slurm" and int(holder.get("restarts") or 0) < world.restarts


def _may_live_elsewhere(rundir: RunDir, holder: dict[str, Any]) -> bool:
    """Whether the last attempt may still run on a machine with which this one shares no locks."""
    ended = any(e.get("event") == "end" and e.get("attempt") == holder.get("attempt") for e in rundir.attempt_events())
    return not ended and holder.get("boot") != _boot()


def _moves(rundir: RunDir, stop: StopFlag) -> bool:
    """Whether the heartbeat of the run changes; clocks of other machines are not trusted."""

    def heartbeat() -> Any:
        return rundir.read_status().get("heartbeat")

    first, deadline = heartbeat(), time.monotonic() + FENCE_S
    while time.monotonic() < deadline:
        if heartbeat() != first:
            return True
        _pause(stop)
    return False


def _pause(stop: StopFlag) -> None:
    if stop:
        raise Stopped
    time.sleep(_POLL_S)


def _of(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return ""
    job = f", job {holder['job_id']}" if holder.get("job_id") else ""
    return f" (attempt {holder.get('attempt')} on {holder.get('host')}, process {holder.get('pid')}{job})"


def _read(path: Path) -> dict[str, Any] | None:
    """The file as it is now: opened, for NFS answers a mere question after a file from its memory."""
    try:
        return RunDir(path.parent).read(path)
    except UserError:
        return None


def _boot() -> str:
    """Tells this machine, since it was started, from every other (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
