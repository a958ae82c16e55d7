"""A file that leaves a small disk as much room as a test says."""

from __future__ import annotations

import os
from pathlib import Path


class Ballast:
    """What else lies on ``disk``."""

    def __init__(self, disk: Path) -> None:
        self._disk, self._file = disk, disk / "ballast"
        self._file.touch()

    def leave(self, n_bytes: int) -> None:
        """Have ``n_bytes`` free."""
        disk, size = os.statvfs(self._disk), self._file.stat().st_size
        wanted = size + disk.f_bavail * disk.f_frsize - n_bytes
        if wanted < size:
            os.truncate(self._file, wanted)
        elif wanted > size:
            with self._file.open("rb+") as file:
                os.posix_fallocate(file.fileno(), size, wanted - size)
