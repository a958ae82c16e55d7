"""What is made of the files of two finished copies."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.drill.account import KILLED, WARNED, Interruption, Log, judge
from launcher.drill.copies import INTERRUPTED, WHOLE, holds
from launcher.runtime.files import write_json
from launcher.runtime.progress import FIRST_STEP, HELD
from launcher.runtime.rundir import RunDir

A, B = "a" * 64, "b" * 64


def copy(folder: Path, name: str, sha: str | None, step: int = 12, device: str = "cpu", **trainer: Any) -> Any:
    """As much of a copy as is looked at."""
    rundir = RunDir(folder / name)
    rundir.path.mkdir(parents=True)
    write_json(rundir.summary, {"weights_sha256": sha, "step": step})
    job = SimpleNamespace(plan=SimpleNamespace(hardware={"device": device}))
    return SimpleNamespace(name=name, rundir=rundir, values={"trainer": trainer}, job=job, hold_at=(4, 8))


def tell(one: Any, event: str, attempt: int, second: float, **values: Any) -> None:
    time = datetime.fromtimestamp(1000 + second, UTC).isoformat(timespec="milliseconds")
    one.rundir.add_attempt_event(event=event, attempt=attempt, time=time, **values)


def told(whole: Any, interrupted: Any, *, saved: int = 4, code: int = 75) -> tuple[Any, dict[str, Log]]:
    """Both with what their files tell of a drill of twelve steps."""
    tell(whole, "start", 1, 3, step=0)
    tell(whole, FIRST_STEP, 1, 5, step=1)
    tell(interrupted, "start", 1, 4, step=0)
    tell(interrupted, FIRST_STEP, 1, 6, step=1)
    tell(interrupted, HELD, 1, 7, step=4, done=4)
    tell(interrupted, "end", 1, 9, step=4, code=code)
    tell(interrupted, "start", 2, 30, step=saved)
    tell(interrupted, FIRST_STEP, 2, 32, step=saved + 1)
    tell(interrupted, HELD, 2, 33, step=8, done=8)
    tell(interrupted, "start", 3, 60, step=saved)
    tell(interrupted, FIRST_STEP, 3, 61, step=saved + 1)
    interruptions = [Interruption(WARNED, 1008), Interruption(KILLED, 1034)]
    logs = {WHOLE: Log([1000.0], [1001.0], []), INTERRUPTED: Log([1000.0], [1002.0, 1025.0, None], interruptions)}
    return SimpleNamespace(both=(whole, interrupted), whole=whole, interrupted=interrupted), logs


@pytest.fixture
def of(tmp_path):
    """``of(sha, other_sha)``: two copies that ended with these weights."""

    def make(one: str | None, other: str | None, **values: Any) -> Any:
        return copy(tmp_path, WHOLE, one, **values), copy(tmp_path, INTERRUPTED, other, **values)

    return make


def test_times_and_steps(of):
    found = judge(*told(*of(A, A)), 12)
    assert (
        found.exact
        and found.verdict == f"exact: after step 12, a warning and a kill the weights are the same bits ({A[:12]})"
    )
    whole, started, warned, killed = found.rows
    assert (whole.queue_s, whole.start_up_s, whole.step, whole.redone) == (1.0, 4.0, 1, None)
    assert (started.event, started.queue_s, started.start_up_s) == ("started", 2.0, 4.0)
    assert (warned.event, warned.step, warned.redone) == (WARNED, 4, 0)
    assert (warned.saved_s, warned.queue_s, warned.start_up_s, warned.back_s) == (1.0, 16.0, 7.0, 24.0)
    assert (killed.event, killed.redone, killed.saved_s, killed.queue_s, killed.back_s) == (KILLED, 4, None, None, 27.0)
    table = found.lines()
    assert table[0].split() == [
        "copy",
        "event",
        "step",
        "saved",
        "s",
        "queue",
        "s",
        "start",
        "up",
        "s",
        "back",
        "s",
        "redone",
    ]
    assert table[-2].split() == [INTERRUPTED, KILLED, "8", "27.0", "4"] and table[-1] == found.verdict
    assert found.to_json()["rows"][2]["back_s"] == 24.0 and found.to_json()["exact"] is True


def test_other_weights(of):
    found = judge(*told(*of(A, B)), 12)
    assert (
        not found.exact and "not exact: after step 12 the weights are aaaaaaaaaaaa, and bbbbbbbbbbbb" in found.verdict
    )
    assert "what the task draws or counts" in found.verdict


def test_other_weights_on_gpus_that_are_not_deterministic(of):
    found = judge(*told(*of(A, B, device="cuda", deterministic=False)), 12)
    assert not found.exact and "trainer.deterministic=false" in found.verdict


def test_steps_that_are_done_again_after_a_warning(of):
    found = judge(*told(*of(A, A), saved=2, code=76), 12)
    assert not found.exact and "2 steps were done again after a warning" in found.verdict
    assert found.rows[2].saved_s is None


def test_a_task_that_saves_nothing(of):
    found = judge(*told(*of(None, None)), 12)
    assert not found.exact and "never called session.save" in found.verdict


@pytest.mark.parametrize("steps", range(3, 40))
def test_both_interruptions_come_before_the_end(steps):
    first, second = holds(steps)
    assert 1 <= first < second < steps
