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


@pytest.fixture
def make_plan(tmp_path):
    """``make_plan(end="stop", at=3, …)``: a plan of the toy job in this test's folder (see ``toy_job``)."""
    from tests.launcher.runtime.toy_job import toy_job

    return lambda *args, **changes: toy_job(tmp_path, *args, **changes)


@pytest.fixture
def run(own_signals):
    """``run(plan)``: one attempt in this process, with a stop flag of its own that hears signals."""
    from launcher.runtime.job import run_job
    from launcher.runtime.signals import StopFlag

    def attempt(plan, env=None):
        flag = StopFlag()
        flag.install()
        return run_job(plan, dict(env or {}), flag)

    return attempt


@pytest.fixture
def uninterrupted(make_plan, run):
    """A plan of the toy job that ran from start to end at one go, beside the runs under test."""
    plan = make_plan(root="whole")
    run(plan)
    return plan
