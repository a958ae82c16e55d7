"""Which rank the others wait for, over real ranks and by its laws."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.slowest import compare, slowest
from tests.launcher.runtime.test_distributed import free_port

_RANK = """
import json, os
import torch.distributed as dist
from launcher.runtime.distributed import process_group
from launcher.runtime.slowest import slowest
from launcher.runtime.world import World

world = World.from_env(os.environ, "cpu")
with process_group(world):
    group = dist.new_group(backend="gloo")
    hosts = ["n1", "n1", "n2"]
    forward = [0.1, 0.1, 0.4][world.rank]
    data = [0.02, float("nan"), 0.01][world.rank]
    print(json.dumps([slowest({"forward": forward, "data": data}, hosts, group),
                      slowest({"data": 0.5, "forward": 0.25}, hosts, group)]))
"""


@pytest.fixture(scope="module")
def three_ranks():
    """What each of three ranks found, twice."""
    port, started = str(free_port()), []
    for rank in range(3):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
        env = ["env", *(f"{k}={v}" for k, v in variables.items()), "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}"]
        started.append(subprocess.Popen([*env, sys.executable, "-c", _RANK], stdout=subprocess.PIPE, text=True))
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    return [json.loads(answer) for answer in answers]


def test_every_rank_learns_which_rank_is_slow_in_what(three_ranks):
    for first, _ in three_ranks:
        assert first.pop("ranks/slowest") == "rank 2 on n2: forward 0.4 s, mean 0.2 s"
        data = {"ranks/data_max_s": 0.02, "ranks/data_mean_s": 0.015}  # of the two that have a figure
        assert first == pytest.approx({"ranks/forward_max_s": 0.4, "ranks/forward_mean_s": 0.2} | data)


def test_ranks_that_are_alike_name_nobody(three_ranks):
    for _, second in three_ranks:
        assert second == {f"ranks/data_{what}_s": 0.5 for what in ("max", "mean")} | {
            f"ranks/forward_{what}_s": 0.25 for what in ("max", "mean")
        }


def test_in_a_world_of_one_there_is_nothing_to_compare():
    assert slowest({"data": 1.0}, ["n1"], None) == {}


def test_of_two_phases_the_one_that_costs_more_is_told():
    table = {"data": [0.001, 0.009, 0.001], "forward": [0.2, 0.2, 0.8]}
    assert compare(table, ["n1", "n2", "n3"])["ranks/slowest"] == "rank 2 on n3: forward 0.8 s, mean 0.4 s"


def test_a_phase_that_no_rank_measured_is_left_out():
    assert compare({"data": [math.nan, math.inf]}, ["n1", "n2"]) == {}


_SECONDS = st.floats(min_value=0, max_value=1e6)


@given(st.lists(_SECONDS, min_size=1, max_size=8))
def test_somebody_is_named_only_where_the_largest_is_over_one_and_a_half_means(seconds):
    found = compare({"data": seconds}, [f"n{rank}" for rank in range(len(seconds))])
    most, mean = found["ranks/data_max_s"], found["ranks/data_mean_s"]
    assert most == max(seconds)
    assert mean == pytest.approx(sum(seconds) / len(seconds))
    assert ("ranks/slowest" in found) == (most > 1.5 * mean)
    if "ranks/slowest" in found:
        rank = seconds.index(most)
        assert found["ranks/slowest"].startswith(f"rank {rank} on n{rank}: data ")
