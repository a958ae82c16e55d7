"""What a rank that hangs leaves behind, and its end: every thread's stack, torch's record of collectives, no goodbyes.

Nothing here may wait for the threads that hang: they may hold any lock, sit in a dead file system or in a GPU.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

log = logging.getLogger(__name__)

_PATIENCE_S = 20.0
_NCCL_TRACE = "_dump_nccl_trace"  # of torch._C._distributed_c10d; only builds with NCCL have it
_GLOO_TRACE = "_dump_fr_trace_json"  # the same for gloo; torch 2.6 has none


def flight_recorder_env(prefix: Path) -> dict[str, str]:
    """Defaults for the environment with which torch keeps a record of the collectives, as ``setdefault`` takes them.

    They are read when the first process group is made. Source: torch/csrc/distributed/c10d/FlightRecorder.hpp and
    ProcessGroupNCCL.hpp. A torch before 2.13 is given the older names too; later ones warn of them.

    Args:
        prefix: where NCCL's own watchdog writes the record when a collective times out: ``<prefix><rank>``. Its folder
            must be there. ``dump_flight_record`` with this prefix writes the same file.
    """
    size, file = "2000", str(prefix)  # collectives, about 1 KB each
    env = {
        "TORCH_FR_BUFFER_SIZE": size,
        "TORCH_FR_DUMP_TEMP_FILE": file,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    if _torch() < (2, 13):
        env |= {"TORCH_NCCL_TRACE_BUFFER_SIZE": size, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": file}
    return env


@cache
def _torch() -> tuple[int, int]:
    """Its version, without importing it."""
    major, minor = version("torch").split(".")[:2]
    return int(major), int(minor)


def dump_stacks(path: Path, *, who: str, where: str) -> None:
    """Append every thread's Python stack to ``path``, below a line with the rank, the time (UTC) and ``where``.

    Never raises: where the file cannot be written the log says so, and the stacks go to stderr.
    """
    head = f"{who}, {datetime.now(UTC).isoformat(timespec='seconds')}: {where}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(head)
            file.flush()  # faulthandler writes to the descriptor itself
            faulthandler.dump_traceback(file, all_threads=True)
            names = (f"0x{thread.ident or 0:016x} {thread.name}" for thread in threading.enumerate())
            file.write("threads: " + ", ".join(names) + "\n\n")
        log.info("the stacks of all threads are in %s", path)
    except Exception:
        log.warning("the stacks cannot be written to %s; they go to stderr", path, exc_info=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)


def dump_flight_record(prefix: Path, json_path: Path, rank: int) -> None:
    """Write torch's record of the last collectives, where there is one; never raises, the log says what failed.

    NCCL's goes to ``<prefix><rank>``, as ``python -m torch.distributed.flight_recorder.fr_trace FOLDER -p PREFIX``
    reads it (prefix without its folder); gloo's, which that tool cannot read, as JSON to ``json_path``.
    """
    torch = sys.modules.get("torch")  # never imported here: the thread that hangs may hold the lock of imports
    c10d = getattr(getattr(torch, "_C", None), "_distributed_c10d", None)
    for name, path in ((_NCCL_TRACE, prefix.with_name(f"{prefix.name}{rank}")), (_GLOO_TRACE, json_path)):
        dump = getattr(c10d, name, None)
        try:
            if dump is not None and _has_group(torch, "nccl" if name == _NCCL_TRACE else "gloo"):
                record = dump()
                path.write_bytes(record if isinstance(record, bytes) else str(record).encode())
                log.info("the record of collectives is in %s", path)
        except Exception:
            log.warning("the record of collectives cannot be written to %s", path, exc_info=True)


def end_now(code: int, *acts: Callable[[], object], patience_s: float = _PATIENCE_S) -> NoReturn:
    """Do ``acts`` in order, flush the logs and end this process with ``code``, whatever its other threads are at.

    Acts that raise are logged. Acts that do not come to an end are left after ``patience_s`` seconds: they run on a
    thread of their own, and should one keep the interpreter to itself, SIGALRM ends the process five seconds later.
    """
    signal.setitimer(signal.ITIMER_REAL, patience_s + 5)
    last = threading.Thread(target=_do, args=(acts,), name="last acts", daemon=True)
    try:
        last.start()
        last.join(patience_s)
    finally:
        os._exit(code)  # no goodbyes: they would wait for what hangs


def _do(acts: tuple[Callable[[], object], ...]) -> None:
    for act in acts:
        try:
            act()
        except Exception:
            log.error("an act before the end of this process failed", exc_info=True)
    for handler in logging.getLogger().handlers:
        handler.flush()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _has_group(torch: Any, backend: str) -> bool:
    """Whether there is a process group of ``backend``, found without asking any of them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return any(backend in str(name) for name, _ in distributed.distributed_c10d._world.pg_map.values())
