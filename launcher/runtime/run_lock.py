"""The lock that one training process of a run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from launcher.runtime.errors import InUse


class RunLock(FileLock):
    """Raises ``InUse`` on acquiring it where another process holds it; never waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, timeout=0)

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """As ``FileLock``."""
        try:
            return super().acquire(*args, **kwargs)
        except Timeout:
            run = Path(self.lock_file).parent
            raise InUse(f"run {run}: another process is training it; wait for it or stop it first") from None


def holder_of(lock_file: Path) -> int | None:
    """Process id of who holds the lock on this machine, as the kernel has it (proc(5), /proc/locks)."""
    try:
        inode = lock_file.stat().st_ino
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    found = (int(words[4]) for words in lines if words[5].rpartition(":")[2] == str(inode) and words[1] != "->")
    return next((pid for pid in found if pid > 0), None)
