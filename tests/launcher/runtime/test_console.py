"""What a person sees: lines without a terminal, a bar on one, and the log file in both cases."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from launcher.runtime.console import Meter, digest, logging_to

log = logging.getLogger("tests.console")


@pytest.fixture
def terminal():
    """A console that believes to be a terminal, and what was drawn on it."""
    drawn = io.StringIO()
    return Console(file=drawn, force_terminal=True, force_interactive=True, width=120), drawn


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: caplog.messages


# Without a terminal


def test_the_first_text_is_a_line_at_once_and_the_next_waits(pipe, lines):
    meter = Meter(pipe, visible=True)
    meter.expect(10)
    meter.show(1, "loss 2.0")
    meter.show(2, "loss 1.9")
    assert lines() == ["step 1/10  loss 2.0"]


def test_an_important_text_does_not_wait(pipe, lines):
    meter = Meter(pipe, visible=True)
    meter.show(1, "loss 2.0")
    meter.show(2, "val 1.9", important=True)
    assert lines() == ["step 1/?  loss 2.0", "step 2/?  val 1.9"]


def test_a_step_without_text_is_no_line(pipe, lines):
    Meter(pipe, visible=True).show(1, important=True)
    assert lines() == []


def test_the_run_is_named_once_its_length_is_known_and_before_its_first_step(pipe, lines):
    meter = Meter(pipe, True, lambda total: f"run x: {total} steps")
    assert lines() == []
    meter.expect(10)
    meter.expect(10)
    meter.show(1, "loss 2.0")
    assert lines() == ["run x: 10 steps", "step 1/10  loss 2.0"]


def test_a_run_of_unknown_length_is_named_with_its_first_step(pipe, lines):
    Meter(pipe, True, lambda total: f"run x: {total} steps").show(1)
    assert lines() == ["run x: None steps"]


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ({}, ""),
        ({"val/loss": 1.25, "train/loss": 2.0, "time/data": 1.0}, "loss 2.0000  val 1.2500"),
        ({"train/samples_per_s": 1234.5, "train/epoch": 0.5}, "epoch 0.50  1234 samples/s"),
        ({"train/samples_per_s": 0.123}, "0.12 samples/s"),
    ],
)
def test_a_line_has_the_numbers_that_were_logged(last, line):
    assert digest(last) == line


@pytest.mark.parametrize("console", ["pipe", "terminal"])
def test_where_nobody_watches_lines_go_to_the_log_and_nothing_is_drawn(console, request, lines):
    console = request.getfixturevalue(console)
    console, drawn = console if isinstance(console, tuple) else (console, console.file)
    meter = Meter(console, visible=False)
    meter.expect(10)
    meter.show(1, "loss 2.0", important=True)
    meter.close()
    assert lines() == ["step 1/10  loss 2.0"]
    assert drawn.getvalue() == ""


# On a terminal


def test_a_bar_shows_how_far_the_run_is_and_its_numbers(terminal, lines):
    console, drawn = terminal
    meter = Meter(console, visible=True)
    meter.expect(40)
    meter.show(30, "loss 2.0")
    meter.close()
    assert "30/40" in drawn.getvalue()
    assert "loss 2.0" in drawn.getvalue()
    assert lines() == []


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_bar_takes_one_line_and_all_that_matters_most_fits(width):
    drawn = io.StringIO()
    meter = Meter(Console(file=drawn, force_terminal=True, force_interactive=True, width=width, no_color=True), True)
    meter.expect(1500)
    meter.show(1200, digest({"train/epoch": 3.2, "train/loss": 0.0123, "val/loss": 0.015, "train/samples_per_s": 412}))
    meter.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue()).rstrip("\n").rpartition("\r")[2]
    assert len(last) <= width and last.startswith("1200/1500 ━") and last.endswith("left")
    assert "epoch 3.20  loss 0.0123" in last and ("val 0.0150  412 samples/s" in last or width < 80)


def test_a_step_without_text_leaves_the_numbers_of_the_step_before(terminal):
    console, drawn = terminal
    meter = Meter(console, visible=True)
    meter.show(1, "loss 2.0")
    meter.show(2)
    meter.close()
    assert "loss 2.0" in drawn.getvalue().rpartition("step")[2]


def test_closing_twice_is_closing_once(terminal):
    console, drawn = terminal
    meter = Meter(console, visible=True)
    meter.close()
    once = drawn.getvalue()
    meter.close()
    assert drawn.getvalue() == once


# The log


def test_records_go_to_the_file_and_to_stderr(tmp_path, capsys):
    with logging_to(tmp_path / "logs" / "rank0.log", visible=True):
        log.info("hello %s", "é")
    assert " INFO tests.console: hello é\n" in (tmp_path / "logs" / "rank0.log").read_text(encoding="utf-8")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" hello é\n")


def test_other_ranks_write_to_their_file_only(tmp_path, capsys):
    with logging_to(tmp_path / "rank1.log", visible=False):
        log.info("hello")
    assert "hello" in (tmp_path / "rank1.log").read_text()
    assert capsys.readouterr() == ("", "")


def test_an_exception_is_logged_with_its_traceback(tmp_path):
    with logging_to(tmp_path / "a.log", visible=False):
        try:
            raise ZeroDivisionError("oh")
        except ZeroDivisionError:
            log.exception("the task raised")
    assert "Traceback" in (tmp_path / "a.log").read_text()


def test_a_later_attempt_adds_to_the_log_of_the_one_before(tmp_path):
    for attempt in (1, 2):
        with logging_to(tmp_path / "a.log", visible=False):
            log.info("attempt %d", attempt)
    assert [line.split()[-1] for line in (tmp_path / "a.log").read_text().splitlines()] == ["1", "2"]


def test_after_the_block_logging_is_as_it_was_even_after_an_error(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with pytest.raises(ZeroDivisionError), logging_to(tmp_path / "a.log", visible=True):
        raise ZeroDivisionError
    assert (root.level, list(root.handlers)) == before
    log.warning("too late")
    assert (tmp_path / "a.log").read_text() == ""


def test_markup_in_a_record_is_shown_as_it_is(tmp_path, capsys):
    with logging_to(tmp_path / "a.log", visible=True):
        log.info("[red]x[/red] [/]")
    assert "[red]x[/red] [/]" in capsys.readouterr().err
