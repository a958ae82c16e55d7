"""The share of variance that a parameter explains: its laws, and when it is not told."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sweeps.compare.importance import epsilon_squared, importance, same_partition

NUMBERS = st.floats(-1e6, 1e6)
GROUPS = st.lists(st.lists(NUMBERS, min_size=1, max_size=6), min_size=2, max_size=5)


def eta_squared(groups):
    whole = [value for group in groups for value in group]
    mean = statistics.fmean(whole)
    total = sum((value - mean) ** 2 for value in whole)
    return sum(len(group) * (statistics.fmean(group) - mean) ** 2 for group in groups) / total


@given(GROUPS)
def test_it_is_never_more_than_eta_squared(groups):
    share = epsilon_squared(groups)
    assume(share is not None)
    assume(statistics.pstdev([v for group in groups for v in group]) > 1e-3)
    assert share <= min(1.0, eta_squared(groups)) + 1e-6


@given(st.lists(st.lists(st.integers(-1000, 1000), min_size=1, max_size=6), min_size=2, max_size=5), st.randoms())
def test_neither_units_nor_order_nor_names_change_it(groups, drawn):
    share = epsilon_squared(groups)
    assume(share is not None)
    other = [[-3.0 * value + 7 for value in drawn.sample(group, len(group))] for group in groups]
    drawn.shuffle(other)
    assert epsilon_squared(other) == pytest.approx(share, abs=1e-9)


def test_what_explains_nothing_is_zero_on_average_where_eta_squared_is_not():
    drawn = random.Random(0)
    shares, etas = [], []
    for _ in range(3000):
        groups = [[drawn.gauss(0, 1) for _ in range(3)] for _ in range(5)]
        shares.append(epsilon_squared(groups))
        etas.append(eta_squared(groups))
    assert statistics.fmean(shares) == pytest.approx(0, abs=0.02)
    assert statistics.fmean(etas) == pytest.approx(4 / 14, abs=0.02)


def test_a_known_example():
    """Between 54, within 6, n = 9, k = 3: 1 - (6 / 6) / (60 / 8)."""
    assert epsilon_squared([[0, 1, 2], [3, 4, 5], [6, 7, 8]]) == pytest.approx(1 - 1 / 7.5)


def test_what_explains_all_is_one():
    assert importance("lr", [1, 1, 2, 2, 3, 3], [1.0, 1.0, 5.0, 5.0, 2.0, 2.0]).share == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "metric", "note"),
    [
        (list("abcdef"), [1.0, 2, 3, 4, 5, 6], "too few runs: 6 for 6 values; repeat values, or add seeds"),
        ([1, 2, 3, 4], [1.0, 2, 3, 4], "too few runs: 4 for 4 values; repeat values, or add seeds"),
        ([1, 1, 2, 2], [1.0, 1, 2, 2], "too few runs: 4 for 2 values; repeat values, or add seeds"),
        ([1] * 8, [1.0, 2] * 4, "the same in all runs with a metric"),
        ([1, 2] * 4, [2.5] * 8, "the metric is 2.5 in all runs"),
        ([1], [2.5], "the same in all runs with a metric"),
    ],
)
def test_where_it_would_mean_nothing_it_is_not_told(values, metric, note):
    found = importance("x", values, metric)
    assert (found.share, found.note) == (None, note)


def test_many_numbers_are_grouped_by_quantiles_and_seeds_never():
    drawn = random.Random(1)
    rates = [drawn.random() for _ in range(200)]
    found = importance("lr", rates, [rate + drawn.gauss(0, 0.01) for rate in rates])
    assert found.binned and found.groups == 5 and 0.85 < found.share < 1
    assert found.note == "200 values in 5 groups by quantiles"
    noise = importance("lr", rates, [drawn.gauss(0, 1) for _ in rates])
    assert noise.share < 0.06
    assert importance("seed", list(range(200)), rates, ordered=False).share is None


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 1e9]), min_size=8, max_size=60), st.integers(0, 9))
def test_equal_values_are_never_torn_apart(values, seed):
    drawn = random.Random(seed)
    found = importance("x", values, [drawn.random() for _ in values])
    assert found.groups <= len(set(values)) and (found.share is None or 0 <= found.share <= 1)


@pytest.mark.parametrize("scale", [1e-300, 1e150, 1e300])
def test_numbers_of_any_size(scale):
    found = importance("x", [1, 1, 1, 2, 2, 2], [scale * v for v in (1, 1.1, 0.9, 2, 2.1, 1.9)])
    assert found.share == pytest.approx(importance("x", [1, 1, 1, 2, 2, 2], [1, 1.1, 0.9, 2, 2.1, 1.9]).share)


def test_parameters_that_changed_together_cannot_be_told_apart():
    assert same_partition([1, 1, 2], ["a", "a", "b"])
    assert not same_partition([1, 1, 2], ["a", "b", "b"])
    assert not same_partition([True, True, 2], [1, 2, 1])
