"""Reading a checkpoint: every byte is checked before any of it is used, and nothing in it is code."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import torch

from launcher.runtime.checkpoint.image import read_header
from launcher.runtime.checkpoint.manifest import Manifest, xxh3
from launcher.runtime.checkpoint.tree import put_together
from launcher.runtime.errors import UserError


def values_file(rank: int) -> str:
    """Name of the file with a rank's plain values, which say where its tensors are."""
    return f"rank{rank:04d}.json"


def tensors_file(entry: str, rank: int) -> str:
    """Name of the file with the tensors of one entry of the state: rank 0's are all ranks', unless theirs differ."""
    return f"{entry}.safetensors" if rank == 0 else f"{entry}.rank{rank:04d}.safetensors"


def load(folder: Path, rank: int = 0) -> dict[str, Any]:
    """A checkpoint's state as rank ``rank`` saved it; a rank that was not there gets rank 0's. Tensors on the CPU.

    They are views of the files (private, so that a change does not reach them): who keeps them copies them.

    Raises:
        UserError: a file is missing, short or changed, or the manifest is no manifest.
    """
    return read(folder, Manifest.read(folder), rank)


def read(folder: Path, manifest: Manifest, rank: int, *, all_files: bool = False) -> dict[str, Any]:
    """As ``load``, of a manifest that was read already; ``all_files``: check those of the other ranks too."""
    names = [entry["name"] for entry in manifest.files]
    own = values_file(rank if values_file(rank) in names else 0)
    if own not in names:
        raise UserError(f"checkpoint {folder}: {own} is not in its manifest")
    tree, wanted = _values(folder, manifest, own)
    files = {name: _checked(folder, manifest, name) for name in (names if all_files else wanted)}
    try:
        tensors = {name: read_header(files[name]) for name in wanted}
        of_entry = {entry: tensors[name] for entry, name in tree["files"].items()}
        return {entry: put_together(node, of_entry.get(entry, {}).__getitem__) for entry, node in tree["state"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({type(error).__name__}: {error})") from None


def _values(folder: Path, manifest: Manifest, name: str) -> tuple[dict[str, Any], list[str]]:
    memory = _checked(folder, manifest, name)
    try:
        tree = json.loads(bytes(memory.numpy().data))
        return tree, sorted(set(tree["files"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"checkpoint {folder}: {name} holds no state ({error})") from None


def _checked(folder: Path, manifest: Manifest, name: str) -> torch.Tensor:
    """A file's bytes, if they are those of the manifest."""
    entry = next((e for e in manifest.files if e["name"] == name), None)
    if entry is None:
        raise UserError(f"checkpoint {folder}: {name} is not in its manifest")
    try:
        memory = _mapped(folder / name)
    except FileNotFoundError:
        raise UserError(f"checkpoint {folder}: {name} is missing") from None
    except OSError as error:
        raise UserError(f"checkpoint {folder}: {name}: {error.strerror}") from None
    if len(memory) != entry["bytes"] or xxh3(memory.numpy().data) != entry["xxh3"]:
        raise UserError(f"checkpoint {folder}: {name} is damaged (size or checksum differs from the manifest)")
    return memory


def _mapped(path: Path) -> torch.Tensor:
    """A file's bytes, mapped: several times as fast as to read them into memory of one's own."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        private = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)
    return torch.frombuffer(private, dtype=torch.uint8)
