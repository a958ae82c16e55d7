"""A command on a real terminal: what a person would see of it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path


def on_terminal(
    folder: Path, words: Sequence[str], env: Mapping[str, str] | None = None, columns: int = 100
) -> tuple[int, str]:
    """Run Python with ``words`` on a pseudo-terminal (pty(7)) of so many columns; its exit code, and all it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    kept |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), **(env or {})}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=kept, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    written = b""
    try:
        while part := _read(ours):
            written += part
    finally:
        os.close(ours)
    return process.wait(), written.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: nobody has the other side open any more
        return b""
