"""What the section ``search`` may say."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.runtime.errors import UserError
from sweeps.study.space import read_space

GOOD: dict[str, dict[str, Any]] = {
    "a": {"log": [1e-4, 1e-1]},
    "b": {"choices": [8, 16.0, "text", None, True]},
    "c": {"linear": [0.0, 1.0]},
    "d": {"int": [1, 8]},
    "e": {"int": [1, 1024], "log": True},
    "f": {"int": [0, 100], "step": 10},
}


def test_every_kind_is_read_and_told_as_it_was_said():
    space = read_space(GOOD)
    assert {axis.key: axis.to_json() for axis in space} == GOOD
    assert [axis.probes for axis in space[:3]] == [(1e-4, 1e-1), (8, 16.0, "text", None, True), (0.0, 1.0)]
    assert all(isinstance(value, int) for axis in space[3:] for value in axis.probes)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"log": [0.0, 1.0]}, "search.x.log=[0.0, 1.0]: both should be above 0"),
        ({"log": [-1.0, 1.0]}, "both should be above 0"),
        ({"int": [0, 8], "log": True}, "both should be above 0"),
        ({"linear": [2.0, 1.0]}, "search.x.linear=[2.0, 1.0]: the first should be below the second"),
        ({"int": [3, 3]}, "the first should be below the second"),
        ({"linear": [1.0]}, "should be two numbers"),
        ({"linear": [0.0, float("inf")]}, "search.x"),
        ({"int": [0.5, 2]}, "search.x.int.0=0.5: should be a valid integer"),
        ({"choices": []}, "search.x.choices=[]: has no value"),
        ({"choices": [1, 1]}, "has a value twice"),
        ({"choices": [[1], [2]]}, "search.x.choices"),
        ({"chioces": [1]}, "unknown word 'chioces'; did you mean 'choices'?"),
        ({}, "should have one of log, linear, int, choices"),
        ({"linear": [0.0, 1.0], "int": [0, 1]}, "should have one of"),
        ({"linear": [0.0, 1.0], "log": True}, "go with int alone"),
        ({"int": [1, 8], "log": True, "step": 2}, "use one of them"),
        (3, "should be a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused(said: Any, words: str):
    with pytest.raises(UserError) as refused:
        read_space({"x": said})
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError, match=r"search\.x.*; search\.y"):
        read_space({"x": {"choices": []}, "y": 1})
    with pytest.raises(UserError, match="search: is empty"):
        read_space({})
