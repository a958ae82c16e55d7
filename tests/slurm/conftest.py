"""Folders for clusters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's own, whose names may be too long for the sockets that a cluster has in its folder."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        yield Path(folder)
