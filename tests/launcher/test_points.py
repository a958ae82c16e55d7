"""Lists, ranges and log ranges of values; axes, and each with each."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from launcher.points import MOST, Axis, axis_of, linear_range, log_range, point_of, product, swept_words, values_of
from launcher.runtime.errors import UserError

positive = st.floats(min_value=1e-300, max_value=1e300)
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=2, max_value=40)


def in_order(values: list[float]) -> bool:
    pairs = list(pairwise(values))
    return all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)


@given(first=positive, last=positive, count=counts)
def test_a_log_range_ends_exactly_where_it_is_told_and_never_turns_back(first, last, count):
    values = log_range(first, last, count)
    assert len(values) == count and values[0] == first and values[-1] == last and in_order(values)


@given(first=finite, last=finite, count=counts)
def test_so_does_a_linear_one(first, last, count):
    values = linear_range(first, last, count)
    assert len(values) == count and values[0] == first and values[-1] == last and in_order(values)


@given(first=st.floats(1e-6, 1e6), times=st.floats(2, 1e6), count=counts)
def test_each_of_a_log_range_is_the_same_multiple_of_the_one_before(first, times, count):
    values = log_range(first, first * times, count)
    step = times ** (1 / (count - 1))
    assert all(math.isclose(b / a, step, rel_tol=1e-4) for a, b in pairwise(values))


@given(low=st.integers(-9, 9), decades=st.integers(1, 6), finer=st.integers(1, 5))
def test_a_finer_range_keeps_the_runs_of_a_coarser_one(low, decades, finer):
    ends = (float(f"1e{low}"), float(f"1e{low + decades}"))
    coarse = log_range(*ends, decades + 1)
    assert coarse == [float(f"1e{low + i}") for i in range(decades + 1)]
    assert set(coarse) <= set(log_range(*ends, decades * finer + 1))


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ([1, "a", None], [1, "a", None]),
        ({"log": [1e-4, 1e-2], "count": 3}, [1e-4, 1e-3, 1e-2]),
        ({"log": [1e-2, 1e-4], "count": 3}, [1e-2, 1e-3, 1e-4]),
        ({"log": [1e-4, 1e-2], "count": 1}, [1e-4]),
        ({"log": [8, 64], "count": 4}, [8, 16, 32, 64]),
        ({"linear": [0, 1], "count": 3}, [0, 0.5, 1]),
        ({"range": [0, 3]}, [0, 1, 2]),
        ({"range": [5, 0, -2]}, [5, 3, 1]),
    ],
)
def test_what_may_be_said(said, values):
    found = values_of("x", said)
    assert found == values and [type(v) for v in found] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], r"^x=\[\]: has no value"),
        (3, r"^x=3: should be a list, or a mapping with one of log, linear, range"),
        ("1,2", r"^x='1,2': should be a list"),
        ({}, r"should be a list"),
        ({"lgo": [1, 2], "count": 2}, r"should have one of log, linear, range; did you mean 'log'"),
        ({"log": [1, 2], "linear": [1, 2], "count": 2}, r"should have one of log, linear, range"),
        ({"log": [0, 1], "count": 3}, r"^x\.log=\[0, 1\]: both should be above 0"),
        ({"log": [1, -1], "count": 3}, r"^x\.log=\[1, -1\]: both should be above 0"),
        ({"log": [1, 2]}, r"missing key 'x\.count'"),
        ({"log": [1, 2], "count": 0}, r"x\.count=0: should be greater than or equal to 1"),
        ({"log": [1, 2], "count": 2.5}, r"x\.count=2\.5: should be a valid integer"),
        ({"log": [1, 2], "counts": 2}, r"unknown key 'x\.counts'; did you mean 'count'"),
        ({"log": [1, 2, 3], "count": 2}, r"should be two numbers"),
        ({"log": [1, math.inf], "count": 2}, r"should be two numbers"),
        ({"log": ["a", 2], "count": 2}, r"x\.log\.0='a': should be a valid number"),
        ({"linear": [1], "count": 2}, r"should be two numbers"),
        ({"linear": [1, 2], "count": 10**9}, r"count=1000000000 should be at most 100000"),
        ({"range": [3, 3]}, r"^x\.range=\[3, 3\]: has no value"),
        ({"range": [3, 1]}, r"has no value"),
        ({"range": [3]}, r"should be \[start, stop\]"),
        ({"range": [0, 3, 0]}, r"the step not 0"),
        ({"range": [0, 1.5]}, r"x\.range\.1=1\.5: should be a valid integer"),
        ({"range": [0, 10**12]}, r"should have at most 100000"),
    ],
)
def test_what_may_not(said, words):
    with pytest.raises(UserError, match=words):
        values_of("x", said)


@given(st.lists(st.integers(0, 6), max_size=5))
def test_a_product_has_each_combination_once(sizes):
    axes = [Axis(f"k{i}", tuple(point_of({f"k{i}": v}) for v in range(size))) for i, size in enumerate(sizes)]
    members = product(axes)
    assert len(members) == len({tuple(m) for m in members}) == math.prod(sizes)
    assert all(
        [word.partition("=")[0] for word in member] == [f"k{i}" for i in range(len(sizes))] for member in members
    )


def test_a_product_that_is_too_large_is_refused_before_it_is_made():
    axes = [axis_of("vary.grid", {f"k{i}": {"range": [0, MOST]}}) for i in range(3)]
    with pytest.raises(UserError, match=r"the sweep has 1000000000000000 members: should be at most 100000"):
        product(axes)


def test_what_drops_out_of_points_leaves_equal_ones_once():
    axis = axis_of("pairs", {"a": [1, 2, 3], "b": [5, 5, 6]})
    assert axis.without({"a"}).points == ({"b": "b=5"}, {"b": "b=6"})
    assert axis.without({"a", "b"}).points == ({},)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(st.characters(exclude_categories=["C", "Z"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), inner)
    ),
    max_leaves=5,
)


@given(values)
def test_hydra_reads_back_the_value_that_was_written(value):
    (word,) = point_of({"key": value}).values()
    assert OverridesParser.create().parse_override(word).value() == value


def test_a_sweepers_params_are_texts_as_typed_lists_and_plain_values():
    said = {"a": "1,2", "b": "range(0,3)", "c": [1e-3, "x", None], "d": 3, "e": None, "f": True}
    assert swept_words(said) == ["a=1,2", "b=range(0,3)", "c=0.001,x,null", "d=3", "e=null", "f=true"]
    with pytest.raises(UserError, match=r"hydra\.sweeper\.params\.a=\[\]: has no value"):
        swept_words({"a": []})
