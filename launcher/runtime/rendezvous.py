"""How the ranks of one start find each other: rank 0 decides, opens a store, and says so in a file of the run.

The file stands below a name that no other start has (``World.incarnation``), its port was free when it was bound, and
a nonce tells the store behind it from any other: two jobs, or two attempts of one, never meet. Under torchrun the file
is its store, which torchrun itself has named (MASTER_ADDR, MASTER_PORT).
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from launcher.runtime.address import Machine, own_address
from launcher.runtime.errors import EndsWith, Stopped, UserError
from launcher.runtime.files import write_json
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World

JOIN_TIMEOUT_S = 600.0
"""How long a rank waits for rank 0, and rank 0 for the others: nodes of one job may start minutes apart."""
_POLL_S = (0.02, 0.5)
"""First and longest pause between two looks for the file."""
_LINGER_S = 10.0
"""How long rank 0 keeps a store of its own open for the others to read that it refuses."""
_KEY = "seemore/verdict"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What rank 0 decided for all ranks of a start."""

    attempt: int = 0
    """Number of the attempt, from 1; 0 where there is none."""
    code: int | None = None
    """Exit code with which every rank ends at once; None: they train."""
    message: str = ""
    """Why they end."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What every rank of a start knows before it joins the process group."""

    verdict: Verdict
    address: str = ""
    """Where rank 0 is reached."""
    store: Any = None
    """A ``torch.distributed.Store`` connected to all ranks; None in a world of one, and where the verdict is to end."""


class Refused(EndsWith):
    """Rank 0 ended this start; ``code`` is its exit code."""


def announce(world: World, rundir: RunDir, verdict: Verdict, interface: str | None) -> Meeting:
    """Rank 0 tells the others what it decided, and opens the store in which they meet if they are to train.

    Raises:
        UserError: this machine has no address that the others can reach, or the file cannot be written.
    """
    if world.size == 1:
        return Meeting(verdict=verdict)
    if world.source == "torchrun":
        return _announce_in_store(world, verdict)
    record = asdict(verdict)
    meeting = Meeting(verdict=verdict)
    if verdict.code is None:
        address = own_address(world, interface, Machine())
        store, nonce = _store(address, 0, main=True), secrets.token_hex(16)
        store.set(_KEY, nonce)
        record |= {"address": address, "port": store.port, "nonce": nonce}
        meeting = Meeting(verdict=verdict, address=address, store=store)
    file = rundir.rendezvous(world.incarnation)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error
    return meeting


def attend(world: World, rundir: RunDir, stop: StopFlag, timeout_s: float = JOIN_TIMEOUT_S) -> Meeting:
    """Every other rank waits for what rank 0 decided, and connects to its store if they are to train.

    Raises:
        UserError: rank 0 was not heard of in time.
        Stopped: ``stop`` was set before.
    """
    if world.source == "torchrun":
        return _attend_in_store(world)
    deadline, pause = time.monotonic() + timeout_s, _POLL_S[0]
    file = rundir.rendezvous(world.incarnation)
    found = None
    while time.monotonic() < deadline:
        if stop:
            raise Stopped
        found = _read(file) or found
        meeting = found and _join(found)
        if meeting:
            return meeting
        time.sleep(pause)
        pause = min(2 * pause, _POLL_S[1])
    what = f"rank 0 does not answer at {found['address']}:{found['port']}" if found else f"rank 0 left no {file}"
    how = "whether the nodes reach each other (site.interface)" if found else "whether all nodes see this folder"
    raise UserError(f"rank {world.rank} on {world.node}: {what} for {timeout_s:g} s; see rank 0's log, and {how}")


def forget(world: World, rundir: RunDir) -> None:
    """Rank 0 removes what an earlier start of the same name left: there is one where a scheduler counts anew."""
    for left in (rundir.rendezvous(world.incarnation), *rundir.failures(world.incarnation)):
        left.unlink(missing_ok=True)


def _join(found: Mapping[str, Any]) -> Meeting | None:
    """Connect to what the file names; None if nobody answers there, or somebody else does."""
    verdict = Verdict(attempt=found["attempt"], code=found["code"], message=found["message"])
    if verdict.code is not None:
        return Meeting(verdict=verdict)
    address, port = found["address"], found["port"]
    try:
        with socket.create_connection((address, port), timeout=5):  # torch would repeat itself until its own timeout
            pass
        store = _store(address, port, main=False)
        store.wait([_KEY], timedelta(seconds=5))
        if store.get(_KEY).decode() != found["nonce"]:
            return None
    except (OSError, RuntimeError):  # torch's DistError is a RuntimeError
        return None
    return Meeting(verdict=verdict, address=address, store=store)


def _store(address: str, port: int, *, main: bool) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(address, port, is_master=main, wait_for_workers=False, timeout=timedelta(seconds=JOIN_TIMEOUT_S))


def _read(file: Any) -> dict[str, Any] | None:
    """The file as it is now: opened, for NFS answers a mere question after a file from its memory."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found


def _announce_in_store(world: World, verdict: Verdict) -> Meeting:
    store, address = _torchruns_store(world)
    store.set(_KEY, json.dumps(asdict(verdict)))
    if verdict.code is None:
        return Meeting(verdict=verdict, address=address, store=store)
    deadline = time.monotonic() + _LINGER_S
    while store.add(f"{_KEY}/read", 0) < world.size - 1 and time.monotonic() < deadline:
        time.sleep(_POLL_S[0])
    return Meeting(verdict=verdict)


def _attend_in_store(world: World) -> Meeting:
    store, address = _torchruns_store(world)
    verdict = Verdict(**json.loads(store.get(_KEY)))
    if verdict.code is not None:
        store.add(f"{_KEY}/read", 1)
        return Meeting(verdict=verdict)
    return Meeting(verdict=verdict, address=address, store=store)


def _torchruns_store(world: World) -> tuple[Any, str]:
    """The store that torchrun's variables name, and its host: fresh for each start and each restart of the workers."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=JOIN_TIMEOUT_S)))
    under = getattr(store, "underlying_store", store)
    return store, str(getattr(under, "host", "") or "")
