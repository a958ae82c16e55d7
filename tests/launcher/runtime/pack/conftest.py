"""A bench for each test of packed members."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.runtime.pack.members import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A submission, and workers that are gone at the end."""
    made = Bench(tmp_path)
    yield made
    made.leave()
