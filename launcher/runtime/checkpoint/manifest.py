"""MANIFEST.json: what a checkpoint consists of, whose it is, and checksums over all of it, itself included."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from launcher.runtime.errors import UserError

NAME = "MANIFEST.json"
FORMAT = 2
_FILE = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint, described."""

    kind: str
    """``step`` (the full state), ``best`` or ``final`` (the model and plain values)."""
    step: int
    run_id: str
    attempt: int
    token: str
    """Of the attempt that committed it (see ``launcher.runtime.lease``)."""
    world_size: int
    files: tuple[Mapping[str, Any], ...]
    """``name``, ``bytes`` and ``xxh3`` (128 bits, hexadecimal) of each file."""
    fingerprint: Mapping[str, Any]
    """Versions and machine, on which bit-exactness depends."""
    metric: float | None = None
    """Of ``best``: the validation result."""

    def to_bytes(self) -> bytes:
        """The file's content."""
        body = {"format": FORMAT} | asdict(self) | {"checksum": self.checksum}
        return (json.dumps(body, indent=2) + "\n").encode()

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of the checkpoint in ``folder``.

        Raises:
            UserError: it is missing, damaged or of another format.
        """
        try:
            body = json.loads((folder / NAME).read_bytes())
            if (found := body.get("format")) != FORMAT:
                raise ValueError(f"format {found}, this version reads {FORMAT}")
            checksum = body.pop("checksum")
            if _checksum(body) != checksum:
                raise ValueError("its checksum differs")
            del body["format"]
            for entry in body["files"]:
                if entry.keys() != {"name", "bytes", "xxh3"} or not _FILE.fullmatch(entry["name"]):
                    raise ValueError(f"no file's entry: {entry}")
            return Manifest(**body | {"files": tuple(body["files"])})
        except FileNotFoundError:
            raise UserError(f"checkpoint {folder}: its {NAME} is missing") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"checkpoint {folder}: its {NAME} is damaged ({error})") from None

    @property
    def checksum(self) -> str:
        """Tells this checkpoint from any other."""
        return _checksum({"format": FORMAT} | asdict(self))


def xxh3(data: Any) -> str:
    """Checksum of a piece of memory: XXH3, 128 bits (https://xxhash.com); as fast as memory is read, not secret."""
    return xxhash.xxh3_128(data).hexdigest()


def _checksum(body: Mapping[str, Any]) -> str:
    content = {key: value for key, value in body.items() if key != "checksum"}
    return xxh3(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def require_whole(folder: Path, *, checksums: bool) -> None:
    """See that the checkpoint in ``folder`` has all of its files, of the size and, if asked, the content it tells.

    Raises:
        UserError: a file is missing, short or changed, or the manifest is none.
    """
    for entry in Manifest.read(folder).files:
        path = folder / entry["name"]
        try:
            whole = path.stat().st_size == entry["bytes"] and (not checksums or _file_xxh3(path) == entry["xxh3"])
        except OSError as error:
            raise UserError(f"checkpoint {folder}: {path.name}: {error.strerror}") from None
        if not whole:
            raise UserError(f"checkpoint {folder}: {path.name} is damaged (size or checksum differs from the manifest)")


def _file_xxh3(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(8 << 20):
            digest.update(chunk)
    return digest.hexdigest()
