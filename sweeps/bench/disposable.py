"""A cluster for the benchmarks that need one."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cluster(slurm_conf: str | None) -> Iterator[str]:
    """``SLURM_CONF`` of the cluster that was named, or of a disposable one, gone afterwards."""
    if slurm_conf:
        yield slurm_conf
        return
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        where = ["--dir", f"{folder}/c"]
        try:
            words = [sys.executable, "-m", "slurm", "up", *where]
            up = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            yield shlex.split(up.stdout)[1].partition("=")[2]
        finally:
            subprocess.run([sys.executable, "-m", "slurm", "down", *where], check=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind what is open, as Ctrl-C does: else daemons and jobs would be left running."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
