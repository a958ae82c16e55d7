"""A listener hears what a run logs, and may end it for good."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.errors import ExitCode
from launcher.runtime.job import run_job
from launcher.runtime.signals import StopFlag
from tests.launcher.runtime.toy_job import STEPS, events, losses, toy_job


class Listener:
    """Ends the run once it hears of ``end_at``."""

    def __init__(self, stop: StopFlag, end_at: int | None = None) -> None:
        self.heard: list[int] = []
        self.finished: list[Mapping[str, Any]] = []
        self._stop, self._end_at = stop, end_at

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.heard.append(step)
        if step == self._end_at:
            self._stop.end(f"enough at step {step}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.finished.append(summary)


def test_a_listener_hears_every_log_and_the_summary(tmp_path: Path):
    plan, stop = toy_job(tmp_path), StopFlag()
    listener = Listener(stop)
    outcome = run_job(plan, {}, stop, visible=False, listener=listener)
    assert outcome.code == ExitCode.DONE and listener.heard == list(range(1, STEPS + 1))
    assert [summary["status"] for summary in listener.finished] == ["COMPLETED"]


def test_a_run_that_is_ended_for_good_is_cancelled_saved_and_done(tmp_path: Path):
    plan, stop = toy_job(tmp_path), StopFlag()
    outcome = run_job(plan, {}, stop, visible=False, listener=Listener(stop, end_at=3))
    assert (outcome.state, outcome.code, outcome.summary) == ("CANCELLED", ExitCode.DONE, {})
    status = plan.rundir.read_status()
    assert (status["state"], status["reason"], status["saved_step"]) == ("CANCELLED", "enough at step 3", 3)
    assert plan.rundir.newest_step() == 3 and not plan.rundir.summary.exists()
    assert events(plan)[-1] == ("end", 1, 0, "CANCELLED")
    again = run_job(plan, {}, StopFlag(), visible=False)  # who asks for it goes on
    assert again.state == "COMPLETED" and [step for step, _ in losses(plan)] == list(range(1, STEPS + 1))


@pytest.mark.usefixtures("own_signals")
def test_a_run_that_is_stopped_first_is_preempted(tmp_path: Path):
    plan, stop = toy_job(tmp_path, end="stop", at=3), StopFlag()
    stop.install()
    outcome = run_job(plan, {}, stop, visible=False, listener=Listener(stop))
    assert outcome.state == "PREEMPTED" and stop.signal == signal.SIGTERM and stop.word == 1.0
