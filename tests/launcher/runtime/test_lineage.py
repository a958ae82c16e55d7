"""Lineage: only what the attempts made one from the other is gone on from."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.lineage import ancestors, candidates
from launcher.runtime.rundir import RunDir
from tests.launcher.runtime.saving import begin


def put(folder, *marks):
    """Checkpoints, by (step, attempt)."""
    for step, attempt in marks:
        RunDir(folder).checkpoint("step", step, attempt).mkdir(parents=True)


def name(step, attempt):
    return RunDir(Path()).checkpoint("step", step, attempt).name


def found(folder):
    """(step, attempt) of the candidates and of the orphans."""
    return tuple([(int(p.name[5:17]), int(p.name[19:])) for p in paths] for paths in candidates(RunDir(folder)))


def test_without_a_folder_there_is_nothing(tmp_path):
    assert found(tmp_path) == ([], [])


def test_without_any_record_of_attempts_all_count(tmp_path):
    put(tmp_path, (1, 1), (2, 2))
    assert found(tmp_path) == ([(2, 2), (1, 1)], [])


def test_a_record_of_failures_only_hides_nothing(tmp_path):
    put(tmp_path, (1, 1), (2, 2))
    RunDir(tmp_path).add_attempt_event(event="start", attempt=3, step=None)
    RunDir(tmp_path).add_attempt_event(event="end", attempt=3, step=0, reason="x", code=1)
    assert found(tmp_path) == ([(2, 2), (1, 1)], [])


def test_one_attempt_counts_whole(tmp_path):
    begin(tmp_path, 1, None)
    put(tmp_path, (10, 1), (20, 1))
    assert found(tmp_path) == ([(20, 1), (10, 1)], [])


def test_what_an_attempt_committed_after_it_was_given_up_is_passed_over(tmp_path):
    begin(tmp_path, 1, None)
    put(tmp_path, (10, 1), (20, 1))
    begin(tmp_path, 2, name(20, 1))
    put(tmp_path, (30, 1), (25, 2))  # attempt 1 lived on
    assert found(tmp_path) == ([(25, 2), (20, 1), (10, 1)], [(30, 1)])


def test_a_damaged_one_that_was_passed_over_once_stays_passed_over(tmp_path):
    begin(tmp_path, 1, None)
    put(tmp_path, (10, 1), (20, 1))
    begin(tmp_path, 2, name(10, 1))
    assert found(tmp_path) == ([(10, 1)], [(20, 1)])
    put(tmp_path, (20, 2))
    assert found(tmp_path) == ([(20, 2), (10, 1)], [(20, 1)])


def test_a_fresh_start_leaves_all_before_it_behind(tmp_path):
    begin(tmp_path, 1, None)
    put(tmp_path, (10, 1))
    begin(tmp_path, 2, None)
    assert found(tmp_path) == ([], [(10, 1)])
    put(tmp_path, (5, 2))
    assert found(tmp_path) == ([(5, 2)], [(10, 1)])


def test_attempts_that_failed_early_do_not_cut_the_line(tmp_path):
    begin(tmp_path, 1, None)
    put(tmp_path, (10, 1))
    RunDir(tmp_path).add_attempt_event(event="start", attempt=2, step=None)
    begin(tmp_path, 3, name(10, 1))
    put(tmp_path, (20, 3))
    RunDir(tmp_path).add_attempt_event(event="start", attempt=4, step=None)
    assert found(tmp_path) == ([(20, 3), (10, 1)], [])


def test_a_line_goes_back_over_several_attempts_and_past_others(tmp_path):
    begin(tmp_path, 1, None)
    begin(tmp_path, 2, name(10, 1))
    begin(tmp_path, 3, name(10, 1))
    begin(tmp_path, 4, name(15, 3))
    put(tmp_path, (10, 1), (12, 2), (15, 3))
    assert found(tmp_path) == ([(15, 3), (10, 1)], [(12, 2)])
    assert ancestors(RunDir(tmp_path).attempt_events()) == {4: math.inf, 3: 15, 1: 10}


def test_a_lost_record_of_attempts_hides_nothing_that_was_gone_on_from(tmp_path):
    put(tmp_path, (10, 1), (15, 2), (20, 3), (30, 3))
    begin(tmp_path, 4, name(20, 3))  # the first that there is a record of; it is killed before it commits
    assert found(tmp_path) == ([(20, 3), (15, 2), (10, 1)], [(30, 3)])
    put(tmp_path, (25, 4))
    begin(tmp_path, 5, name(25, 4))
    assert found(tmp_path) == ([(25, 4), (20, 3), (15, 2), (10, 1)], [(30, 3)])


def test_an_attempt_that_says_it_came_from_itself_ends_the_line(tmp_path):
    begin(tmp_path, 1, name(5, 1))
    assert ancestors(RunDir(tmp_path).attempt_events()) == {1: math.inf}
    begin(tmp_path, 2, name(5, 3))
    begin(tmp_path, 3, name(5, 2))
    assert ancestors(RunDir(tmp_path).attempt_events()) == {3: math.inf, 2: 5}


@settings(max_examples=100)
@given(st.data())
def test_a_run_simulated_is_always_continued_with_its_own_past(data):
    """Each attempt resumes some step of its past, or nothing, and commits a few more; the past is what counts."""
    with tempfile.TemporaryDirectory() as folder:
        root, past, everything = Path(folder), [], []
        for attempt in range(1, data.draw(st.integers(1, 5)) + 1):
            if data.draw(st.booleans(), label="failed early"):
                RunDir(root).add_attempt_event(event="start", attempt=attempt, step=None)
                continue
            kept = data.draw(st.integers(0, len(past)), label="how much of the past is whole")
            past = past[:kept]
            begin(root, attempt, name(*past[-1]) if past else None)
            at = past[-1][0] if past else 0
            for step in data.draw(st.lists(st.integers(1, 3), max_size=3), label="strides"):
                at += step
                past.append((at, attempt))
                everything.append((at, attempt))
                put(root, (at, attempt))
        usable, orphans = found(root)
        assert sorted(usable) == sorted(past) and usable == sorted(usable, reverse=True)
        assert sorted(usable + orphans) == sorted(everything)
