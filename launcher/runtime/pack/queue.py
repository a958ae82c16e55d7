"""A queue of members in a shared folder: an empty file for each, renamed from ``waiting`` to ``claimed`` to ``ended``.

rename(2) is atomic, on NFS too: of several workers one gets a member. No server is asked, and workers come and go. A
worker holds a lock for as long as it or one of its children lives; what it had claimed when it died anybody gives back.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.files import append_json_line, read_json_lines

_OF = "@"
"""Between an entry and the worker that claimed it. No host's name and no job's number has it."""

_ENTRY = re.compile(rf"([0-9]{{6}}|[1-9][0-9]{{6,}})({_OF}.+)?")
"""What ``entry_name`` makes, claimed or not; what else lies there (an editor's or NFS's files) is nobody's work."""


@dataclass(frozen=True)
class Queue:
    """One submission's folder ``queues/<token>``. An entry's name has no ``@`` and no ``/``, and sorts in its order."""

    path: Path

    @property
    def waiting(self) -> Path:
        """Entries that nobody runs, a file each."""
        return self.path / "waiting"

    @property
    def claimed(self) -> Path:
        """``<entry>@<worker>``: entries that a worker runs."""
        return self.path / "claimed"

    @property
    def ended(self) -> Path:
        """Entries that nobody needs to run any more: done, failed, cancelled."""
        return self.path / "ended"

    @property
    def workers(self) -> Path:
        """A lock for each worker, and a file of its starts."""
        return self.path / "workers"

    def cancellation(self, entry: str) -> Path:
        """Exists where ``entry`` is to be stopped, and not run again."""
        return self.path / "cancelled" / entry

    def fill(self, entries: Iterable[str]) -> None:
        """Add ``entries``; the folders are made where they are missing."""
        for folder in (self.waiting, self.claimed, self.ended, self.workers, self.path / "cancelled"):
            folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            (self.waiting / entry).touch()

    def list_waiting(self) -> list[str]:
        """Entries that wait, in their order."""
        return sorted(_names(self.waiting))

    def list_ended(self) -> list[str]:
        """Entries that are over, in their order."""
        return sorted(_names(self.ended))

    def claims(self) -> dict[str, str]:
        """The worker of each entry that is claimed."""
        pairs = (name.partition(_OF) for name in _names(self.claimed))
        return {entry: worker for entry, _, worker in pairs if worker}

    def claim(self, entry: str, worker: str) -> bool:
        """Take ``entry`` for ``worker``; False: somebody was faster, or it does not wait."""
        return _rename(self.waiting / entry, self._claim(entry, worker))

    def give_back(self, entry: str, worker: str) -> bool:
        """Have an entry that ``worker`` claimed wait again; False: it was taken from it."""
        return _rename(self._claim(entry, worker), self.waiting / entry)

    def end(self, entry: str, worker: str | None) -> bool:
        """Nobody needs to run ``entry`` any more. ``worker`` had claimed it; None: it was waiting."""
        return _rename(self.waiting / entry if worker is None else self._claim(entry, worker), self.ended / entry)

    def give_back_of_dead(self) -> int:
        """Have entries wait again whose workers are gone; how many there were.

        Where machines do not share locks a worker seems gone that lives: then two run one member, and the run's lease
        (``launcher.runtime.lease``) lets one of them train.
        """
        return sum(self._give_back_of_dead(worker) for worker in sorted(set(self.claims().values())))

    def _give_back_of_dead(self, worker: str) -> int:
        with self._lock_of_dead(worker) as is_dead:
            mine = [entry for entry, claimant in self.claims().items() if claimant == worker] if is_dead else []
            return sum(self.give_back(entry, worker) for entry in mine)

    def is_alive(self, worker: str) -> bool:
        """Whether ``worker`` or one of its children holds its lock."""
        with self._lock_of_dead(worker) as is_dead:
            return not is_dead

    @contextmanager
    def _lock_of_dead(self, worker: str) -> Iterator[bool]:
        """Whether ``worker`` is dead; if so no other start of it begins in this block, to claim the same entries."""
        try:
            descriptor = os.open(self._lock(worker), os.O_RDWR)
        except FileNotFoundError:
            yield True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    @contextmanager
    def joined(self, worker: str) -> Iterator[None]:
        """Be ``worker`` in this block, once no other process is; what an earlier start of it had claimed waits again.

        The lock outlives this process while children of it live: they inherit it (flock(2)).

        Raises:
            UserError: the queue is gone.
        """
        try:
            descriptor = os.open(self._lock(worker), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"queue {self.path}: {error.strerror or error}; submit the sweep again") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # children of an earlier start end soon: their parent is gone
            for entry, claimant in self.claims().items():
                if claimant == worker:
                    self.give_back(entry, worker)
            yield
        finally:
            os.close(descriptor)

    def add_event(self, worker: str, event: str, **values: Any) -> None:
        """Append to the worker's record: ``start``, ``began`` (its first member since then) or ``requeue``."""
        append_json_line(self._events(worker), {"event": event, "job_id": worker, **values})

    def events(self, worker: str) -> list[dict[str, Any]]:
        """The record of ``worker``."""
        return read_json_lines(self._events(worker))

    def _claim(self, entry: str, worker: str) -> Path:
        return self.claimed / f"{entry}{_OF}{worker}"

    def _lock(self, worker: str) -> Path:
        return self.workers / f"{worker}.lock"

    def _events(self, worker: str) -> Path:
        return self.workers / f"{worker}.jsonl"


def entry_name(index: int) -> str:
    """The entry of the plan on line ``index`` (from 0) of a submission."""
    return f"{index:06d}"


def _rename(old: Path, new: Path) -> bool:
    """Whether this call renamed it. An NFS client may ask twice and hear of the second time that there is none."""
    try:
        old.rename(new)
    except FileNotFoundError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return [path.name for path in folder.iterdir() if _ENTRY.fullmatch(path.name)]
    return []
