"""What ``launcher doctor`` runs on each node of its test job: ``python -m launcher.runtime.checkup FOLDER``.

Ranks talk through files in FOLDER, which is one of the things that is tried; each leaves ``rank<N>.json``. Times that
two machines have a part in are round trips, measured by one clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.runtime.address import Machine, interface_to
from launcher.runtime.device import has_bf16
from launcher.runtime.files import write_json

WORDS = 1 << 20
"""Numbers in the all-reduce that is timed: 4 MiB of fp32."""
_LOOK_EVERY_S = 0.02
_DISKS = ("SLURM_TMPDIR", "LOCAL_SCRATCH", "TMPDIR")
"""Variables in which clusters name a job's folder on its node's own disk."""
_DISK_FOLDERS = ("/scratch", "/local_scratch", "/localscratch", "/local")


@dataclass
class Checkup:
    """One rank's part."""

    folder: Path
    rank: int
    size: int
    local_rank: int
    gpu: bool
    deadline: float
    """Of ``time.monotonic()``."""
    env: Mapping[str, str] = field(default_factory=dict)
    main_host: str = ""
    """Rank 0's, once another rank has heard of it."""
    found: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All steps, each tried whatever became of the others; returns what was found."""
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "files": self._files, "clock": self._clock, "place": self._place, "torch": self._torch,
            "product": self._product,
            "all_reduce": self._all_reduce,
        }  # fmt: skip
        for name, step in steps.items():
            try:
                self.found |= step()
            except Exception as error:
                self.errors[name] = f"{type(error).__name__}: {error}"
                if name == "torch":
                    break
        return {"rank": self.rank, **self.found, "errors": self.errors}

    def _files(self) -> dict[str, Any]:
        """Seconds until this rank's answer to rank 0 is seen there: a file's way to another node and back."""
        ranks = range(self.size)
        self._write(f"here{self.rank}")
        if self.rank:
            self.main_host = str(self._wait(["ping"])[0].get("host", ""))
            self._write(f"pong{self.rank}")
            return {}
        self._wait(f"here{rank}" for rank in ranks)
        begun = time.monotonic()
        self._write("ping", host=socket.gethostname())
        seen = {}
        for rank in ranks[1:]:
            self._wait([f"pong{rank}"])
            seen[str(rank)] = round(time.monotonic() - begun, 3)
        return {"round_trips_s": seen}

    def _clock(self) -> dict[str, Any]:
        """How far this machine's clock is ahead of the submitting one's, and how sure that is (Cristian, 1989)."""
        asked = time.time()
        self._write(ask(self.rank))
        there = float(self._wait([answer(self.rank)])[0]["time"])
        answered = time.time()
        ahead = (asked + answered) / 2 - there
        return {"clock_ahead_s": round(ahead, 3), "clock_unsure_s": round((answered - asked) / 2, 3)}

    def _place(self) -> dict[str, Any]:
        """The network interface by which rank 0 is reached, all of them, and folders on this node's own disk."""
        machine = Machine()
        addresses = machine.addresses_of(self.main_host) if self.main_host else []
        interface = interface_to(addresses[0], machine) if addresses else None
        disks = [name for name in _DISKS if (path := self.env.get(name)) and os.access(path, os.W_OK)]
        disks += [path for path in _DISK_FOLDERS if os.access(path, os.W_OK)]
        return {"interface": interface, "interfaces": machine.interfaces(), "disks": disks}

    def _torch(self) -> dict[str, Any]:
        begun = time.monotonic()
        import torch

        seconds = round(time.monotonic() - begun, 3)
        bf16 = {"bf16": has_bf16("cuda")} if self.gpu else {}
        return {"torch": str(torch.__version__), "torch_import_s": seconds, **bf16}

    def _product(self) -> dict[str, Any]:
        """A matrix product that is known comes out right."""
        from launcher.runtime.node_checks import try_product

        try_product(f"cuda:{self.local_rank}" if self.gpu else "cpu")
        return {}

    def _all_reduce(self) -> dict[str, Any]:
        """Seconds until all ranks have met, and of one all-reduce of ``WORDS`` numbers."""
        import torch
        import torch.distributed as dist

        from launcher.runtime.node_checks import try_sum

        if self.gpu:
            torch.cuda.set_device(self.local_rank)
        begun = time.monotonic()
        left = timedelta(seconds=max(1.0, self.deadline - begun))
        dist.init_process_group(
            "nccl" if self.gpu else "gloo", store=self._meet(left), rank=self.rank, world_size=self.size, timeout=left
        )
        try:
            device = "cuda" if self.gpu else "cpu"
            try_sum(self.rank, self.size, device, 1)
            met_s = time.monotonic() - begun
            seconds = try_sum(self.rank, self.size, device, WORDS)
        finally:
            dist.destroy_process_group()
        return {"met_s": round(met_s, 3), "all_reduce_s": round(seconds, 4)}

    def _meet(self, left: timedelta) -> Any:
        """A store that all ranks share; rank 0 serves it at a free port and says where in a file."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        if self.rank:
            place = self._wait(["store"])[0]
            return TCPStore(place["host"], int(place["port"]), self.size, False, timeout=left)
        store = TCPStore(socket.gethostname(), 0, self.size, True, timeout=left, wait_for_workers=False)
        self._write("store", host=socket.gethostname(), port=store.port)
        return store

    def _write(self, name: str, **values: Any) -> None:
        write_json(self.folder / name, values)

    def _wait(self, names: Iterable[str]) -> list[dict[str, Any]]:
        return [self._wait_for(name) for name in names]

    def _wait_for(self, name: str) -> dict[str, Any]:
        while True:
            os.listdir(self.folder)  # makes a network file system look again (nfs(5), close-to-open)  # noqa: PTH208
            try:
                value: dict[str, Any] = json.loads((self.folder / name).read_text())
                return value
            except FileNotFoundError:
                if time.monotonic() > self.deadline:
                    raise TimeoutError(f"{name} did not appear in {self.folder}") from None
            time.sleep(_LOOK_EVERY_S)


def ask(rank: int) -> str:
    """File by which a rank asks the submitting machine for its time."""
    return f"ask{rank}"


def answer(rank: int) -> str:
    """File with that machine's answer."""
    return f"answer{rank}"


def result(rank: int) -> str:
    """File with what a rank found."""
    return f"rank{rank}.json"


def main(env: Mapping[str, str], arguments: list[str] | None = None) -> int:
    """The program; 0 where every step went well, else 1."""
    parser = argparse.ArgumentParser("python -m launcher.runtime.checkup", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=100.0, help="for all steps together (100)")
    parser.add_argument("--gpu", action="store_true", help="NCCL instead of gloo")
    args = parser.parse_args(arguments)
    rank = int(env.get("SLURM_PROCID", "0"))
    size, local = int(env.get("SLURM_NTASKS", "1")), int(env.get("SLURM_LOCALID", "0"))
    checkup = Checkup(args.folder, rank, size, local, args.gpu, time.monotonic() + args.seconds, env)
    checkup.found |= {"host": env.get("SLURMD_NODENAME") or socket.gethostname(), "python": platform.python_version()}
    found = checkup.run()
    write_json(args.folder / result(rank), found)
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
