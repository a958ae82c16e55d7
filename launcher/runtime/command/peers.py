"""What the ranks of a command tell each other: they have no process group, their programs may make one."""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import timedelta
from typing import Any

from launcher.runtime.failures import PeerLost
from launcher.runtime.world import World

_PORT, _STOP, _ENDED = "command/port", "command/stop", "command/ended/{}"


class Peers:
    """The ranks of one start, each with a program of its own: who was asked to stop, and how each one ended."""

    def __init__(self, world: World, store: Any) -> None:
        """``store`` is the ``torch.distributed.Store`` of the meeting; None in a world of one."""
        self.world, self._store = world, store

    def port(self) -> int:
        """A port of rank 0's node that was free a moment ago, for the program's own process group; one for all."""
        if self._store is None:
            return _free_port()
        if self.world.is_main:
            self._tell(_PORT, str(_free_port()))
        return int(self._said(_PORT))

    def ask_to_stop(self) -> None:
        """Tell all ranks: a signal may have reached this one alone."""
        self._tell(_STOP, "1")

    def asked(self) -> bool:
        """Whether some rank was asked to stop."""
        return self._store is not None and self._has(_STOP)

    def ended(self, code: int) -> None:
        """Leave word of how this rank's program ended."""
        self._tell(_ENDED.format(self.world.rank), str(code))

    def others(self) -> dict[int, int]:
        """Exit codes of the other ranks' programs by rank, as far as they have ended."""
        ranks = [rank for rank in range(self.world.size) if rank != self.world.rank]
        return {rank: int(self._said(key)) for rank in ranks if self._has(key := _ENDED.format(rank))}

    def _tell(self, key: str, value: str) -> None:
        if self._store is not None:
            with suppress(RuntimeError):  # rank 0 is gone; how this rank's program ends counts all the same
                self._store.set(key, value)

    def _has(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError as error:
            raise PeerLost(f"rank {self.world.rank} on {self.world.node} lost rank 0: {error}") from None

    def _said(self, key: str) -> str:
        self._store.wait([key], timedelta(seconds=60))
        return str(self._store.get(key).decode())


def _free_port() -> int:
    with socket.create_server(("", 0)) as listening:
        return int(listening.getsockname()[1])
