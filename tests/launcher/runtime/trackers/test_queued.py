"""Trackers on threads of their own: whatever they do, whoever logs never waits, and nothing is lost in silence."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.trackers.queued import Beside, Queued

LONG = 60.0


class Notes:
    """A recorder that remembers, breaks where it is told to, and stands still while ``gate`` is closed."""

    def __init__(self, broken=(), ledger=False) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        self.logged: list[tuple[int, dict]] = []
        self.acts: list[str] = []
        self.broken, self.ledger = set(broken), ledger

    def log(self, values, step):
        self.reached.set()
        self.gate.wait(LONG)
        if step in self.broken:
            raise ValueError(f"no {step}")
        self.logged.append((step, dict(values)))

    def flush(self):
        self.acts.append("flush")

    def catch_up(self):
        self.acts.append("catch_up")
        return self.ledger

    def finish(self, summary):
        self.acts.append("finish")
        self.summary = dict(summary)

    @property
    def steps(self):
        return [step for step, _ in self.logged]


def until(seconds=LONG):
    return time.monotonic() + seconds


def queued(notes, **limits):
    return Queued("notes", lambda: notes, "ask the ledger", **limits)


def test_all_is_recorded_in_order_then_flushed_and_finished():
    notes = Notes()
    queue = queued(notes)
    for step in range(500):
        queue.log({"a": float(step)}, step)
    queue.end({"status": "COMPLETED"})
    assert queue.wait(until())
    assert notes.steps == list(range(500)) and notes.acts[-2:] == ["flush", "finish"]
    assert notes.summary == {"status": "COMPLETED"} and "catch_up" not in notes.acts


@given(st.integers(1, 20), st.integers(0, 60))
def test_a_full_queue_drops_the_oldest_and_keeps_the_order(most, logs):
    notes = Notes()
    notes.gate.clear()
    queue = queued(notes, most=most)
    queue.log({"a": 0.0}, -1)
    assert notes.reached.wait(LONG)  # it holds this one, all others wait
    for step in range(logs):
        queue.log({"a": 0.0}, step)
    notes.gate.set()
    queue.end({})
    assert queue.wait(until()) == (logs <= most)
    assert notes.steps == [-1, *range(max(0, logs - most), logs)] and queue.dropped == max(0, logs - most)


def test_pictures_are_bounded_by_their_size(caplog):
    notes = Notes()
    notes.gate.clear()
    queue = queued(notes, most_bytes=50_000)
    queue.log({}, 0)
    assert notes.reached.wait(LONG)
    for step in range(1, 11):
        queue.log({"picture": np.zeros((100, 100), np.uint8)}, step)
    notes.gate.set()
    queue.end({})
    queue.wait(until())
    assert notes.steps == [0, 6, 7, 8, 9, 10] or notes.steps == [0, 7, 8, 9, 10]
    assert sum("queue is full" in record.getMessage() for record in caplog.records) == 1


def test_one_picture_that_is_larger_than_the_queue_is_recorded():
    notes = Notes()
    queue = queued(notes, most_bytes=10)
    queue.log({"picture": np.zeros((100, 100), np.uint8)}, 1)
    queue.end({})
    assert queue.wait(until()) and notes.steps == [1]


def test_the_first_error_is_said_with_what_to_do_and_the_others_counted(caplog):
    notes = Notes(broken=range(1, 8))
    queue = queued(notes)
    for step in range(10):
        queue.log({"a": 1.0}, step)
    queue.end({})
    assert not queue.wait(until())
    first, last = [record.getMessage() for record in caplog.records]
    assert first == "notes: ValueError: no 1; training goes on without it; ask the ledger"
    assert last == "notes: not all is recorded (7 errors); ask the ledger"
    assert notes.steps == [0, 8, 9] and notes.acts[-2:] == ["catch_up", "finish"]


def test_what_the_ledger_made_up_for_is_not_called_missing(caplog):
    notes = Notes(broken={3}, ledger=True)
    queue = queued(notes)
    for step in range(5):
        queue.log({"a": 1.0}, step)
    queue.end({})
    assert queue.wait(until())
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # of the error itself


def test_what_no_ledger_has_stays_missing_and_is_told(caplog):
    notes = Notes(broken={3}, ledger=True)
    queue = queued(notes)
    for step in range(5):
        queue.log({"a": 1.0} | ({"picture": np.zeros((2, 2, 3), np.uint8)} if step == 3 else {}), step)
    queue.end({})
    assert not queue.wait(until())
    assert caplog.records[-1].getMessage() == "notes: not all is recorded (1 errors); ask the ledger"


def test_a_library_that_would_end_the_process_ends_no_thread(caplog):
    notes = Notes()
    real = notes.log

    def leaving(values, step):
        if step == 1:
            raise SystemExit("no licence")
        real(values, step)

    notes.log = leaving
    queue = queued(notes)
    for step in range(4):
        queue.log({"a": 1.0}, step)
    queue.end({})
    assert not queue.wait(until())
    assert notes.steps == [0, 2, 3] and "notes: SystemExit: no licence;" in caplog.records[0].getMessage()


def test_one_that_hangs_is_left_at_the_deadline_and_told(caplog):
    notes = Notes()
    notes.gate.clear()
    queue = queued(notes)
    for step in range(4):
        queue.log({"a": 1.0}, step)
    queue.end({})
    assert not queue.wait(until(0.05))
    (record,) = caplog.records
    assert record.getMessage() == (
        "notes: not all is recorded (did not come to an end in time, 4 logs are left); ask the ledger"
    )
    notes.gate.set()
    assert queue.wait(until())


def test_opening_takes_place_on_the_thread_and_is_tried_again():
    here, tries, notes = threading.get_ident(), [], Notes()

    def opened():
        tries.append(threading.get_ident())
        if len(tries) < 3:
            raise ConnectionError("away")
        return notes

    queue = Queued("notes", opened, "ask", again_s=0.01)
    queue.log({"a": 1.0}, 1)
    assert queue.wait_idle(until()) and notes.steps == [1]
    queue.end({})
    queue.wait(until())
    assert len(tries) == 3 and here not in tries


def test_one_that_can_never_be_opened_is_said_and_the_end_does_not_wait_for_the_next_try(caplog):
    def opened():
        raise ConnectionError("away\nand more")

    queue = Queued("notes", opened, "ask the ledger", again_s=LONG)
    queue.log({"a": 1.0}, 1)
    queue.end({})
    assert not queue.wait(until())
    first, last = [record.getMessage() for record in caplog.records]
    assert first == "notes: ConnectionError: away and more; training goes on without it; ask the ledger"
    assert last.startswith("notes: not all is recorded (1 logs are left, ")


def test_what_was_gathered_is_written_after_a_while_without_another_log():
    notes = Notes()
    queue = queued(notes, gather_s=0.01)
    queue.log({"a": 1.0}, 1)
    assert queue.wait_idle(until()) and notes.acts == ["flush"]
    queue.end({})
    queue.wait(until())


def test_a_thread_of_a_tracker_does_not_hold_up_the_end_of_the_process(command):
    code = """if True:
        import threading
        from launcher.runtime.trackers.queued import Queued
        queue = Queued("stuck", lambda: threading.Event().wait(), "ask")
        queue.log({"a": 1.0}, 1)
        print("over")"""
    done = command("-c", code)
    assert (done.returncode, done.stdout) == (0, "over\n")


def test_a_fork_has_trackers_of_its_own_and_a_parent_none():
    """As a worker forks its members: it starts no thread, and what a member starts is the member's."""
    before = threading.active_count()
    assert "launcher.runtime.trackers.queued" in __import__("sys").modules and threading.active_count() == before
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            notes = Notes()
            queue = queued(notes)
            queue.log({"a": 1.0}, 1)
            queue.end({})
            code = 0 if queue.wait(until()) and notes.steps == [1] else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert threading.active_count() == before


# All of them together


def test_values_that_no_tracker_records_are_said_once_and_the_others_recorded(caplog):
    notes = Notes()
    beside = Beside([queued(notes)], LONG)
    odd = {"none": None, "list": [1, 2], "dict": {}}
    values = {"loss": np.float32(0.5), "n": np.int64(3), "yes": True, "nan": float("nan"), "inf": float("inf"),
              "zero_d": np.array(2.0), "note": "hi"}  # fmt: skip
    for step in (1, 2):
        beside.log(values | odd, step)
    beside.finish({"status": "COMPLETED"})
    assert beside.wait()
    kept = dict(notes.logged[1][1])
    assert np.isnan(kept.pop("nan")) and kept == {
        "loss": 0.5, "n": 3.0, "yes": 1.0, "inf": float("inf"), "zero_d": 2.0, "note": "hi"}  # fmt: skip
    assert all(type(value) in (float, str) for value in kept.values())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and "none of step 1 is a NoneType: trackers record numbers, texts and pictures" in said


def test_a_picture_is_recorded_as_it_was_when_it_was_logged():
    notes = Notes()
    notes.gate.clear()
    beside, picture = Beside([queued(notes)], LONG), np.zeros((2, 2, 3), np.uint8)
    beside.log({"picture": picture}, 1)
    picture[:] = 9
    notes.gate.set()
    beside.finish({"status": "COMPLETED"})
    assert beside.wait() and not notes.logged[0][1]["picture"].any()


def test_one_that_hangs_keeps_nothing_from_the_others(caplog):
    stuck, well = Notes(), Notes()
    stuck.gate.clear()
    beside = Beside([queued(stuck), queued(well)], 0.2)
    for step in range(20):
        beside.log({"a": 1.0}, step)
    beside.finish({"status": "FAILED"})
    assert not beside.wait() and well.steps == list(range(20)) and well.summary == {"status": "FAILED"}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    stuck.gate.set()


@pytest.mark.parametrize("summary", [{}, {"status": "COMPLETED"}])
def test_a_stop_waits_no_longer_than_a_run_that_is_done(summary):
    beside = Beside([], 30.0)
    beside.finish(summary)
    assert beside.wait() and beside.patience_s == (30.0 if summary else 5.0)
