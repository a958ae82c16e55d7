"""Which rank the others wait for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.slowest import slowest


def test_a_rank_that_is_slow_is_named_with_its_node_and_phase():
    found = slowest({"forward": [0.1, 0.1, 0.4], "data": [0.02, math.nan, 0.01]}, ["n1", "n1", "n2"])
    assert found.pop("ranks/slowest") == "rank 2 on n2: forward 0.4 s, mean 0.2 s"
    data = {"ranks/data_max_s": 0.02, "ranks/data_mean_s": 0.015}  # of the two that have a figure
    assert found == pytest.approx({"ranks/forward_max_s": 0.4, "ranks/forward_mean_s": 0.2} | data)


def test_ranks_that_are_alike_name_nobody():
    found = slowest({"forward": [0.25] * 3}, ["n1", "n1", "n2"])
    assert found == {"ranks/forward_max_s": 0.25, "ranks/forward_mean_s": 0.25}


def test_of_two_phases_the_one_that_costs_more_is_told():
    table = {"data": [0.001, 0.009, 0.001], "forward": [0.2, 0.2, 0.8]}
    assert slowest(table, ["n1", "n2", "n3"])["ranks/slowest"] == "rank 2 on n3: forward 0.8 s, mean 0.4 s"


def test_a_phase_that_no_rank_measured_is_left_out():
    assert slowest({"data": [math.nan, math.inf]}, ["n1", "n2"]) == {}


_SECONDS = st.floats(min_value=0, max_value=1e6)


@given(st.lists(_SECONDS, min_size=1, max_size=8))
def test_somebody_is_named_only_where_the_largest_is_over_one_and_a_half_means(seconds):
    found = slowest({"data": seconds}, [f"n{rank}" for rank in range(len(seconds))])
    most, mean = found["ranks/data_max_s"], found["ranks/data_mean_s"]
    assert most == max(seconds)
    assert mean == pytest.approx(sum(seconds) / len(seconds))
    assert ("ranks/slowest" in found) == (most > 1.5 * mean)
    if "ranks/slowest" in found:
        rank = seconds.index(most)
        assert found["ranks/slowest"].startswith(f"rank {rank} on n{rank}: data ")
