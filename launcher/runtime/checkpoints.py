"""Checkpoints on disk: written aside, checksummed, renamed; found again by step, verified before they are used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from launcher.runtime.errors import UserError
from launcher.runtime.files import sync_folder, write_atomic, write_json
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import CheckpointSettings

MANIFEST = "MANIFEST.json"
STATE = "state.pt"
WEIGHTS = "weights.pt"
_FORMAT = 1


class Checkpoints:
    """The checkpoints of one run, as one attempt writes and reads them."""

    def __init__(self, rundir: RunDir, settings: CheckpointSettings, attempt: int) -> None:
        self._rundir = rundir
        self._settings = settings
        self._attempt = attempt

    def save_state(self, step: int, state: Mapping[str, Any]) -> Path:
        """Commit the full state after ``step`` and prune older ones."""
        path = self._commit("step", step, STATE, state)
        self._prune_states(path)
        return path

    def save_best(self, step: int, content: Mapping[str, Any], metric: float) -> Path:
        """Commit the weights of the best validation so far; the one before goes."""
        return self._commit_only("best", step, content, metric)

    def save_final(self, step: int, content: Mapping[str, Any]) -> Path:
        """Commit the weights of a finished run."""
        return self._commit_only("final", step, content, None)

    def restore(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest full state that is whole, or None; and what is wrong with those newer than it, a line each."""
        problems: list[str] = []
        for path in self._rundir.list_checkpoints("step"):
            try:
                return load(path), problems
            except UserError as error:
                problems.append(str(error))
        return None, problems

    def drop_states(self) -> None:
        """Remove all full states: a finished member of a sweep keeps weights only."""
        for path in self._rundir.list_checkpoints("step"):
            shutil.rmtree(path)
        self._rundir.latest.unlink(missing_ok=True)

    def _commit_only(self, kind: str, step: int, content: Mapping[str, Any], metric: float | None) -> Path:
        path = self._commit(kind, step, WEIGHTS, content, metric)
        for old in self._rundir.list_checkpoints(kind):
            if old != path:
                shutil.rmtree(old)
        return path

    def _commit(self, kind: str, step: int, name: str, content: Mapping[str, Any], metric: float | None = None) -> Path:
        """Write ``content`` into a folder of its own and rename it into place: the rename is the commit."""
        final = self._rundir.checkpoint(kind, step, self._attempt)
        if final.exists():  # this attempt has committed this step already
            return final
        aside = final.with_name(f".tmp-{final.name}")
        for left_by_a_crash in final.parent.glob(".tmp-*"):  # one process writes here: it holds the run's lock
            shutil.rmtree(left_by_a_crash)
        try:
            aside.mkdir(parents=True)
            with (aside / name).open("wb") as file:
                torch.save(dict(content), file)
                file.flush()
                os.fsync(file.fileno())
            entry = {"name": name, "bytes": (aside / name).stat().st_size, "sha256": _sha256(aside / name)}
            manifest = {"format": _FORMAT, "kind": kind, "step": step, "attempt": self._attempt, "files": [entry]}
            write_json(aside / MANIFEST, manifest if metric is None else manifest | {"metric": metric})
            aside.rename(final)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            refusal = error if isinstance(error, OSError) else error.__context__  # torch.save hides it behind its own
            if not isinstance(refusal, OSError):
                raise
            reason = refusal.strerror or refusal
            raise UserError(f"checkpoint {final}: {reason}; the one before is untouched") from error
        sync_folder(final.parent)
        if kind == "step":
            write_atomic(self._rundir.latest, final.name.encode())
        return final

    def _prune_states(self, newest: Path) -> None:
        every = self._settings.keep_every
        states = self._rundir.list_checkpoints("step")
        states = states[states.index(newest) :]  # later steps of an earlier attempt are damaged: restore passed them
        for path in states[self._settings.keep_last :]:
            step = int(path.name.split("-")[1].split(".")[0])
            if not every or step % every:
                shutil.rmtree(path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint folder after checking sizes and SHA-256 against its manifest. Tensors come to the CPU.

    Raises:
        UserError: a file is missing, short, changed, or holds anything but tensors and plain values.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        entries = [(path / e["name"], e["bytes"], e["sha256"]) for e in manifest["files"]]
        content = entries[0][0]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"checkpoint {path}: its {MANIFEST} is missing or unreadable") from None
    for file, size, digest in entries:
        if not file.exists():
            raise UserError(f"checkpoint {path}: {file.name} is missing")
        if file.stat().st_size != size or _sha256(file) != digest:
            raise UserError(f"checkpoint {path}: {file.name} is damaged (size or checksum differs from {MANIFEST})")
    return load_file(content)


def load_file(path: Path) -> dict[str, Any]:
    """Read a file that ``torch.save`` wrote, tensors and plain values only: no code in it is ever run.

    Raises:
        UserError: there is no such file, it is no torch file, or it holds other objects (a pickle bomb).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # torch meets a foreign file with almost any of them
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: refused, not a file of tensors and plain values only ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold a mapping of names to tensors, holds a {type(content).__name__}")
    return content


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over each key in sorted order (UTF-8) followed by its tensor's contiguous bytes."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
