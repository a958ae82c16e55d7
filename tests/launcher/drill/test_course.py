"""The course of a drill over a queue that a test plays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.drill import course
from launcher.drill.account import KILLED, WARNED
from launcher.drill.copies import INTERRUPTED, WHOLE
from launcher.drill.course import Course
from launcher.requeue import NOT_HERE
from launcher.runtime.errors import Stopped, UserError
from launcher.runtime.files import write_json
from launcher.runtime.progress import FIRST_STEP, HELD
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag


class Played:
    """A queue in which everything happens at once: ``requeues`` says whether it brings back what was interrupted."""

    def __init__(self, copies: Any, *, at_once: bool = True, requeues: bool = True, steps: int = 12) -> None:
        self.at_once, self.requeues, self.steps = at_once, requeues, steps
        self.calls: list[tuple[str, str]] = []
        self.alive: dict[str, bool] = {}
        self.why: str | None = None
        self.on_start: Callable[[Any], None] = self.train

    def train(self, copy: Any) -> None:
        """Until the next step at which it is interrupted, or its end."""
        before = [e["event"] for e in copy.rundir.attempt_events()]
        _tell(copy, FIRST_STEP, step=1)
        self.alive[copy.name] = True
        if before.count(HELD) < len(copy.hold_at) and copy.hold_at[before.count(HELD)] <= self.steps:
            _tell(copy, HELD, step=copy.hold_at[before.count(HELD)])
            return
        write_json(copy.rundir.summary, {"step": self.steps})
        copy.rundir.say_state("COMPLETED", "")

    def start(self, copy: Any) -> str:
        self.calls.append(("start", copy.name))
        self.on_start(copy)
        return "job 1"

    def warn(self, copy: Any) -> None:
        self.calls.append((WARNED, copy.name))
        self._interrupted(copy)

    def kill(self, copy: Any) -> None:
        self.calls.append((KILLED, copy.name))
        self._interrupted(copy)

    def _interrupted(self, copy: Any) -> None:
        if self.requeues:
            self.train(copy)
        else:
            self.alive[copy.name] = False
            copy.rundir.say_state("FAILED", f"broke down; {NOT_HERE}: python -m launcher resume x")

    def waits(self, copy: Any) -> str | None:
        return self.why

    def lives(self, copy: Any) -> bool:
        return self.alive.get(copy.name, False)

    def began(self, copy: Any) -> float | None:
        return 5.0

    def end(self, copies: Any) -> None:
        self.calls.append(("end", ""))


def _tell(copy: Any, event: str, **values: Any) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    copy.rundir.add_attempt_event(event=event, attempt=1, time=now, **values)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(course, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(course, "_ASK_EVERY_S", 0.0)


@pytest.fixture
def copies(tmp_path):
    whole, interrupted = (
        SimpleNamespace(name=name, rundir=RunDir(tmp_path / name), hold_at=hold_at)
        for name, hold_at in ((WHOLE, ()), (INTERRUPTED, (4, 8)))
    )
    for copy in (whole, interrupted):
        copy.rundir.path.mkdir()
    return SimpleNamespace(both=(whole, interrupted), whole=whole, interrupted=interrupted)


def run(copies: Any, place: Played, patience_s: float = 60, stop: StopFlag | None = None) -> Course:
    """A drill to its end."""
    ran = Course(copies, place, patience_s=patience_s)
    ran.run(StopFlag() if stop is None else stop)
    return ran


@pytest.mark.parametrize("at_once", [True, False])
def test_a_warning_then_a_kill(copies, at_once):
    place = Played(copies, at_once=at_once)
    logs = run(copies, place).logs
    assert place.calls == [
        ("start", WHOLE), ("start", INTERRUPTED), (WARNED, INTERRUPTED), (KILLED, INTERRUPTED), ("end", ""),
    ]  # fmt: skip
    assert [one.kind for one in logs[INTERRUPTED].interruptions] == [WARNED, KILLED]
    assert (logs[WHOLE].began, logs[INTERRUPTED].began) == ([5.0], [5.0] * 3)


def test_where_requeues_are_forbidden_it_is_submitted_again_and_that_is_said_once(copies, capsys):
    place = Played(copies, requeues=False)
    run(copies, place)
    assert [name for word, name in place.calls if word == "start"] == [WHOLE, INTERRUPTED, INTERRUPTED, INTERRUPTED]
    assert capsys.readouterr().err.count("Slurm may not requeue jobs here") == 1


def test_a_task_that_is_too_short_is_told_before_the_other_copy_begins(copies):
    place = Played(copies, at_once=False, steps=5)
    with pytest.raises(UserError, match=r"ended after step 5, before .* 2 times \(at steps 4, 8\); .*--steps 5"):
        run(copies, place)
    assert place.calls == [("start", WHOLE), ("end", "")]


def test_a_task_of_two_steps_cannot_be_drilled(copies):
    with pytest.raises(UserError, match="too short to be drilled"):
        run(copies, Played(copies, steps=2))


def test_a_copy_that_waits_longer_than_the_patience_is_cancelled(copies):
    place = Played(copies)
    place.on_start = lambda copy: place.alive.update({copy.name: True})
    place.why = "Resources"
    with pytest.raises(UserError, match=r"did not start within 0 s \(Resources\); its jobs were cancelled"):
        run(copies, place, patience_s=0)
    assert place.calls[-1] == ("end", "")


def test_a_copy_that_only_runs_long_is_left_alone(copies):
    place = Played(copies)
    stop = StopFlag()
    looks = iter(range(20))

    def lives(copy: Any) -> bool:
        if next(looks, None) is None:
            stop.end("enough seen")
        return True

    place.on_start, place.lives = lambda copy: None, lives
    with pytest.raises(Stopped):
        run(copies, place, patience_s=0, stop=stop)


def test_a_copy_that_fails_by_itself_is_told_with_its_reason(copies):
    place = Played(copies)
    place.on_start = lambda copy: copy.rundir.say_state("FAILED", "data.path=x: no such file")
    with pytest.raises(UserError, match=r"the uninterrupted copy is FAILED: data\.path=x: no such file; see .*/unint"):
        run(copies, place)
    assert place.calls[-1] == ("end", "")


def test_a_copy_that_does_not_come_back_is_given_up(copies):
    place = Played(copies, requeues=False)
    first = place.on_start

    def start(copy: Any) -> None:
        if copy.name == WHOLE or not copy.rundir.attempt_events():
            first(copy)

    place.on_start = start
    with pytest.raises(UserError, match="the interrupted copy is FAILED: it does not go on"):
        run(copies, place)
    assert place.calls.count(("start", INTERRUPTED)) == 4


def test_ctrl_c_cancels(copies):
    place, stop = Played(copies), StopFlag()
    stop.end("Ctrl-C")
    with pytest.raises(Stopped):
        run(copies, place, stop=stop)
    assert place.calls[-1] == ("end", "")
