"""How laws are tried here: as often as they say, however slow the machine is at the moment; and desks to work at."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")


@pytest.fixture
def desk(tmp_path):
    """``desk(attempt=2, every_steps=1, …)``: a session in this test's folder."""
    from tests.launcher.runtime.desk import Desk

    return lambda attempt=1, **changes: Desk(tmp_path, attempt, **changes)


@pytest.fixture
def raised(own_signals):
    """``raised(flag)``: a real SIGTERM that ``flag`` hears."""

    def ask(flag) -> None:
        flag.install()
        os.kill(os.getpid(), signal.SIGTERM)

    return ask
