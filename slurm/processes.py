"""Processes of a cluster, found by what they were started with; waiting for events; ending processes for certain.

Process ids written to files go stale and are given to strangers, so they are never trusted here: a process belongs to
a cluster if its environment (proc(5)) names the cluster's slurm.conf and it was started by us or by a slurmd, or if it
is a child of a daemon that writes to the cluster's log.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm.errors import ClusterError
from slurm.layout import Layout

DAEMON_MARK = "SEEMORE_DAEMON"
"""Environment variable of the daemons that we start: which one it is. Jobs do not get it."""
NODE_MARK = "SLURMD_NODENAME"
"""Slurm's own mark of every task; we set it for slurmd too, so that all processes of a node carry it."""
TASK = "task"
"""What a process started by a job is called."""

# Slurm's daemons for a step and for scripts write their titles over their environment; their log tells whose they are.
_CHILDREN = ("slurmstepd", "slurmscriptd")
_POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """One living process of a cluster."""

    pid: int
    kind: str
    """A daemon, ``slurmstepd`` (slurmd's child for each step), ``slurmscriptd`` (slurmctld's), or ``task``."""
    node: str | None
    """The node it runs on; None for what is not a node's."""
    started: int
    """Clock ticks from boot to its start: with ``pid`` what tells it from any other process."""


def find(layout: Layout) -> list[Process]:
    """All living processes of a cluster. A shell or a client that merely uses it is none of them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            process = _identify(int(entry.name), layout)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or another user's: a cluster is one user's
        if process:
            found.append(process)
    return found


def _identify(pid: int, layout: Layout) -> Process | None:
    name, _, started = _stat(pid)
    if name in _CHILDREN:
        logs = {str(log): log.stem for log in layout.logs.glob("*.log")}
        kept = (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
        writer = next((logs[path] for path in kept if path in logs), None)
        return None if writer is None else Process(pid, name, None if writer == "slurmctld" else writer, started)
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    if f"SLURM_CONF={layout.slurm_conf}".encode() not in words:
        return None
    values = dict(word.decode(errors="replace").partition("=")[::2] for word in words)
    daemon, node = values.get(DAEMON_MARK), values.get(NODE_MARK)
    if daemon is None:
        return None if node is None else Process(pid, TASK, node, started)
    return Process(pid, daemon, node, started)


def _stat(pid: int) -> tuple[str, str, int]:
    """Name, state (a letter) and start of a process (proc(5): the name stands in brackets and may hold some)."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, fields[0], int(fields[19])


def _over(process: Process) -> bool:
    """Whether it has let go of all it held. One that is ending loses its environment before its ports and files."""
    try:
        _, state, started = _stat(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX" or started != process.started


def wait_until(event: Callable[[], bool], timeout_s: float) -> bool:
    """Poll ``event`` until it is true or ``timeout_s`` seconds are over; whether it came true."""
    deadline = time.monotonic() + timeout_s
    while not event():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def end(chosen: Callable[[], list[Process]], grace_s: float) -> None:
    """End all processes that ``chosen`` finds, and those it finds later: SIGTERM, SIGKILL after ``grace_s`` seconds.

    With a grace of 0 there is no SIGTERM. Returns when ``chosen`` finds none, and none of those found is left.

    Raises:
        ClusterError: a process outlives SIGKILL.
    """
    seen: set[Process] = set()
    deadline = time.monotonic() + grace_s

    def gone() -> bool:
        left = chosen() or chosen()  # twice: one that forks while /proc is read can escape the first look
        for process in left:
            if time.monotonic() >= deadline:
                _send(process, signal.SIGKILL)
            elif process not in seen:
                _send(process, signal.SIGTERM)
        seen.update(left)
        return not left and all(_over(process) for process in seen)

    if not wait_until(gone, grace_s + 10):
        names = ", ".join(f"{process.kind} (pid {process.pid})" for process in chosen())
        raise ClusterError(f"{names}: still there 10 s after SIGKILL")


def _send(process: Process, number: signal.Signals) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return  # it ended by itself: what was wanted
