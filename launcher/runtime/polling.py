"""What takes long and can be ended: a task's poll is asked every so often whether to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

Poll = Callable[[], None]
"""Called every so often while something is made; it raises where this process is to stop, and nothing is left."""

ASK_S = 0.1
"""Longest wait between two polls, in seconds."""


def keep_going() -> None:
    """The poll of a process that nobody asks to stop: raises never."""


@contextmanager
def held(lock: FileLock, poll: Poll) -> Iterator[None]:
    """Hold ``lock``, which another process may hold for minutes: a wait that a request to stop ends."""
    while True:
        poll()
        try:
            lock.acquire(timeout=ASK_S)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()
