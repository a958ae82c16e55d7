"""Saving beside the training: one save at a time, on a thread of its own, agreed on by all ranks.

Protocol, ``N`` being the folder of the checkpoint:

1. The training loop copies the state (``Camera``) and goes on. All else happens on the thread.
2. Rank 0 makes a folder aside, writes its files with checksums, fsyncs each, and tells the others their checksums.
3. Each other rank writes what differs from rank 0's: its plain values with its random numbers, and tensors that are not
   the same on all ranks. All tell whether they could.
4. If all could, rank 0 writes the manifest, looks at its lease, renames the folder to ``N`` and fsyncs the parent.
5. Rank 0 tells the others. Only then older checkpoints go.

A failure at any point leaves what was there before; all ranks hear of it.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.checkpoint.manifest import Manifest, xxh3
from launcher.runtime.checkpoint.reading import tensors_file, values_file
from launcher.runtime.checkpoint.snapshot import Camera, Snapshot
from launcher.runtime.checkpoint.writing import as_json, commit, link_or_write, make_aside, remove
from launcher.runtime.distributed import Channel
from launcher.runtime.lease import Lease, Superseded
from launcher.runtime.rundir import RunDir, checkpoint_of
from launcher.runtime.settings import CheckpointSettings
from launcher.runtime.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Author:
    """Who writes checkpoints: what the manifests of an attempt have in common."""

    run_id: str
    attempt: int
    lease: Lease
    fingerprint: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A checkpoint that is to be made of a snapshot."""

    kind: str
    """``step`` by all ranks; ``best`` or ``final`` by rank 0 alone."""
    step: int
    entries: frozenset[str]
    metric: float | None = None


class Saver:
    """The checkpoints that one attempt writes."""

    def __init__(
        self, rundir: RunDir, settings: CheckpointSettings, world: World, author: Author, restored: Path | None
    ) -> None:
        self.committed: int | None = None
        """Step of the newest full state, committed or restored by this attempt."""
        self.requested: int | None = None
        """Step of the newest full state that was asked for or restored."""
        self.failures = 0
        """Saves in a row that failed."""
        self.superseded: Superseded | None = None
        """Another attempt has taken the run over."""
        self.error = ""
        """Why the last one did."""
        self.not_finite: str | None = None
        """What made a state unfit to be saved."""
        self.stall_s = 0.0
        """How long the training loop waited for the last save."""
        self._rundir, self._settings, self._world, self._author = rundir, settings, world, author
        self._camera = Camera()
        self._channel = Channel()
        self._thread: threading.Thread | None = None
        self._verified: list[Path] = []
        self._light: tuple[Path, dict[str, dict[str, Any]]] | None = None
        """The last checkpoint of weights and its entries by name: often the best weights are the final ones too."""
        if restored is not None:
            self._verified.append(restored)
            self.committed = self.requested = (checkpoint_of(restored.name) or ("", 0, 0))[1]

    def start(self, state: Mapping[str, Any], wishes: Sequence[Wish]) -> None:
        """Copy ``state`` and begin to write; waits for the save before it, if that still writes. All ranks call it.

        Raises:
            TypeError: something in ``state`` cannot be saved.
        """
        began = time.perf_counter()
        self.wait()
        if any(wish.kind == "step" for wish in wishes):
            self.requested = wishes[-1].step
        wanted = frozenset[str]().union(*(wish.entries for wish in wishes))
        snapshot = self._camera.take({name: value for name, value in state.items() if name in wanted})
        self._thread = threading.Thread(target=self._save, args=(snapshot, wishes), name="save", daemon=True)
        self._thread.start()
        self.stall_s = time.perf_counter() - began

    def wait(self, timeout_s: float | None = None) -> None:
        """Until nothing is being written any more, at most so long."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if not self._thread.is_alive():
                self._thread = None

    def require_run(self) -> None:
        """See that this attempt still holds the run: rank 0 looks, the others know what they were told by a save.

        Raises:
            Superseded: it does not.
        """
        if self.superseded is not None:
            raise self.superseded
        if self._world.is_main:
            self._author.lease.require()

    def drop_states(self) -> None:
        """Remove all full states: a finished member of a sweep keeps weights only."""
        for path in self._rundir.list_checkpoints("step"):
            self._discard(path)
        self._rundir.latest.unlink(missing_ok=True)

    def _save(self, snapshot: Snapshot, wishes: Sequence[Wish]) -> None:
        """On the thread: whatever happens is kept for the training loop, which asks for it.

        What keeps rank 0 from one checkpoint does not keep it from the next: the others wait to hear of a ``step``.
        """
        unfit = _Problem()
        with unfit:
            snapshot.wait()
            if self._world.is_main and (name := snapshot.first_not_finite()) is not None:
                raise _NotFinite(name)
        failed = False
        for wish in wishes:
            try:
                if wish.kind == "step":
                    self._save_by_all(snapshot.only(set(wish.entries)), wish, unfit)
                elif unfit.error is not None:
                    raise unfit.error
                else:
                    self._save_by_main(snapshot.only(set(wish.entries)), wish)
            except Exception as error:  # the thread's edge: told on, never lost
                failed = True
                self._note(wish, error)
        self.failures = self.failures + 1 if failed else 0

    def _note(self, wish: Wish, error: Exception) -> None:
        self.error = _reason(error)
        what = f"step {wish.step}" if wish.kind == "step" else f"{wish.kind} of step {wish.step}"
        log.error("%s was not saved: %s; what was there is untouched", what, self.error)
        if isinstance(error, Superseded):
            self.superseded = error
        elif isinstance(error, _NotFinite):
            self.not_finite = str(error.args[0])
        elif not isinstance(error, OSError | _NotSaved):
            log.error("saving", exc_info=error)

    def _save_by_main(self, snapshot: Snapshot, wish: Wish) -> None:
        """Rank 0 alone."""
        final = self._final(wish)
        if final.exists():
            return
        self._author.lease.require()  # before what another attempt is writing is taken for a crashed save's
        aside = make_aside(self._rundir, final, snapshot.n_bytes)
        try:
            entries, _ = self._write(snapshot, aside, {}, self._light)
            self._commit(aside, final, wish, entries)
            self._light = final, {entry["name"]: entry for entry in entries}
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self._rundir.list_checkpoints(wish.kind):
            if old != final:
                self._discard(old)

    def _save_by_all(self, snapshot: Snapshot, wish: Wish, problem: _Problem) -> None:
        """Steps 2 to 5 of the protocol, unless this rank has a problem; all hear of it, and how it went."""
        final, main = self._final(wish), self._world.is_main
        aside, checksums = final, dict[str, str]()
        entries: list[dict[str, Any]] = []
        if main and not problem:
            with problem:
                self._author.lease.require()
                aside = make_aside(self._rundir, final, snapshot.n_bytes)
                entries, checksums = self._write(snapshot, aside, {})
        name, first, checksums = self._channel.from_main((aside.name, problem.error, checksums))
        problem.error = first or problem.error
        if not main and not problem:
            with problem:
                entries, _ = self._write(snapshot, final.with_name(name), checksums)
        told = self._channel.from_all((wish.step, problem.error, entries))
        problem.error = next((error for _, error, _ in told if error), None)
        if any(step != wish.step for step, _, _ in told):
            problem.error = _NotSaved(f"the ranks save different steps: {[step for step, _, _ in told]}")
        if main and not problem:
            with problem:
                self._commit(aside, final, wish, [entry for _, _, theirs in told for entry in theirs])
        if main and aside != final:
            shutil.rmtree(aside, ignore_errors=True)  # what could not be committed
        problem.error = self._channel.from_main(problem.error)
        if problem.error is not None:
            raise problem.error
        self.committed = wish.step
        if main:
            self._prune(final)

    def _write(
        self,
        snapshot: Snapshot,
        aside: Path,
        theirs: Mapping[str, str],
        light: tuple[Path, Mapping[str, Mapping[str, Any]]] | None = None,
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Write what differs from ``theirs``, rank 0's checksums by entry; returns manifest entries and checksums.

        Files of the checkpoint ``light`` that have the same content are shared with it.
        """
        rank = self._world.rank
        written: list[dict[str, Any]] = []
        files, checksums = {}, {}
        folder, known = light or (aside, {})

        def put(name: str, data: memoryview) -> None:
            twin = folder / name if name in known else None
            written.append(link_or_write(aside / name, data, twin, known.get(name, {})))

        for entry, image in snapshot.images.items():
            data = image.memory.numpy().data
            if entry in theirs and xxh3(data) == theirs[entry]:
                files[entry] = tensors_file(entry, 0)
                continue
            files[entry] = tensors_file(entry, rank)
            put(files[entry], data)
            checksums[entry] = written[-1]["xxh3"]
        put(values_file(rank), as_json({"state": snapshot.trees, "files": files}))
        return written, checksums

    def _commit(self, aside: Path, final: Path, wish: Wish, entries: Sequence[Mapping[str, Any]]) -> None:
        author = self._author
        manifest = Manifest(
            kind=wish.kind, step=wish.step, run_id=author.run_id, attempt=author.attempt, token=author.lease.token,
            world_size=self._world.size, files=tuple(entries), fingerprint=author.fingerprint, metric=wish.metric,
        )  # fmt: skip
        author.lease.require()
        commit(self._rundir, aside, final, manifest)

    def _prune(self, newest: Path) -> None:
        """Keep the last K that are known to be whole, and each Nth; the others go once there are K of these."""
        self._verified = [newest, *(path for path in self._verified if path != newest)][: self._settings.keep_last]
        if len(self._verified) < self._settings.keep_last:
            return
        for path in self._rundir.list_checkpoints("step"):
            step = (checkpoint_of(path.name) or ("", 0, 0))[1]
            every = self._settings.keep_every
            if path not in self._verified and (not every or step % every):
                self._discard(path)

    def _discard(self, path: Path) -> None:
        try:
            remove(self._rundir, path)
        except OSError as error:
            log.warning("checkpoint %s cannot be deleted: %s", path, error.strerror)

    def _final(self, wish: Wish) -> Path:
        return self._rundir.checkpoint(wish.kind, wish.step, self._author.attempt)


class _NotSaved(Exception):
    """A save that was given up; all ranks know why."""


class _NotFinite(_NotSaved):
    """Its argument is the name of the weights."""

    def __str__(self) -> str:
        return f"the weights {self.args[0]} are not finite"


class _Problem:
    """Keeps what is raised within it, to be told to the other ranks first."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __bool__(self) -> bool:
        return self.error is not None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if isinstance(error, Superseded | OSError | _NotSaved):
            self.error = error
        elif isinstance(error, Exception):
            log.error("saving", exc_info=error)
            self.error = _NotSaved(f"{type(error).__name__}: {error}")
        return self.error is not None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
