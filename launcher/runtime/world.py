"""Where this process stands among its peers, and on what device: the only reader of the environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from launcher.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among ``size``. Ranks are 0-based; ``device`` is ``cpu`` or ``cuda:<index>``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    micro_batch: int | None = None
    """Most samples that one forward pass may hold here; None: no limit."""
    source: str = "single"
    """Who said so: ``torchrun`` or ``single`` (no launcher, one process)."""
    host: str = ""
    """Name of this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that all ranks share."""
        return self.rank == 0

    @staticmethod
    def from_env(env: Mapping[str, str], device: str, micro_batch: int | None = None) -> World:
        """Read the world that torchrun describes (RANK, WORLD_SIZE, LOCAL_RANK), or a world of one.

        Args:
            device: ``cpu`` or ``cuda``; on ``cuda`` the local rank chooses the GPU.

        Raises:
            UserError: a variable is missing, no number, or contradicts another.
        """
        host = socket.gethostname()
        if "RANK" not in env and "WORLD_SIZE" not in env:
            return World(device="cuda:0" if device == "cuda" else device, micro_batch=micro_batch, host=host)
        rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        local_rank = _number(env, "LOCAL_RANK")
        if not 0 <= rank < size:
            raise UserError(f"RANK={rank}: should be from 0 to WORLD_SIZE-1={size - 1}")
        if not 0 <= local_rank < size:
            raise UserError(f"LOCAL_RANK={local_rank}: should be from 0 to WORLD_SIZE-1={size - 1}")
        return World(
            rank=rank,
            size=size,
            local_rank=local_rank,
            device=f"cuda:{local_rank}" if device == "cuda" else device,
            micro_batch=micro_batch,
            source="torchrun",
            host=host,
        )


def set_defaults(env: MutableMapping[str, str]) -> None:
    """Set, before torch is imported, what libraries of this process read from the environment; the user's own stays."""
    # Without it cuBLAS has no deterministic algorithms (cuBLAS manual, "Results reproducibility").
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except KeyError:
        raise UserError(f"{name} is not set, but RANK or WORLD_SIZE is: set all three or none") from None
    except ValueError:
        raise UserError(f"{name}={env[name]!r}: should be a whole number") from None
