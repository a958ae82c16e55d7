"""What tests of the launcher share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.recorded_slurm import RecordedSlurm


@pytest.fixture
def recorded_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedSlurm:
    """Recorded, and the only one on PATH; the current folder is ``tmp_path``."""
    recorded = RecordedSlurm(tmp_path / "slurm")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("PATH", recorded.env["PATH"])
    monkeypatch.chdir(tmp_path)
    return recorded
