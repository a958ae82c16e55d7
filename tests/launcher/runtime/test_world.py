"""The world: what torchrun's environment says of this process, and contradictions in it."""

from __future__ import annotations

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.world import World

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def test_without_a_launcher_there_is_a_world_of_one():
    world = World.from_env({"HOME": "/root", "LOCAL_RANK": "7"}, "cpu")
    assert (world.rank, world.size, world.local_rank, world.device) == (0, 1, 0, "cpu")
    assert world.source == "single"
    assert world.is_main
    assert world.host == socket.gethostname()


def test_torchrun_is_read_from_its_three_variables():
    world = World.from_env(TORCHRUN, "cpu", micro_batch=8)
    assert (world.rank, world.size, world.local_rank, world.device) == (3, 4, 1, "cpu")
    assert (world.source, world.micro_batch) == ("torchrun", 8)
    assert not world.is_main


def test_a_gpu_is_chosen_by_the_local_rank():
    assert World.from_env({}, "cuda").device == "cuda:0"
    assert World.from_env(TORCHRUN, "cuda").device == "cuda:1"


@given(st.integers(1, 64), st.data())
def test_exactly_one_rank_is_main(size, data):
    rank = data.draw(st.integers(0, size - 1))
    world = World.from_env({"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}, "cpu")
    assert world.is_main == (rank == 0)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_a_missing_variable_is_named(missing):
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"^{missing} is not set"):
        World.from_env(env, "cpu")


@pytest.mark.parametrize("name", TORCHRUN)
@pytest.mark.parametrize("value", ["", "one", "1.5"])
def test_a_variable_that_is_no_whole_number_is_named_with_its_value(name, value):
    with pytest.raises(UserError, match="^" + re.escape(f"{name}={value!r}: should be a whole number")):
        World.from_env(TORCHRUN | {name: value}, "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "4"}, "RANK=4: should be from 0 to WORLD_SIZE-1=3"),
        ({"RANK": "-1"}, "RANK=-1: should be from 0 to WORLD_SIZE-1=3"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0: should be from 0 to WORLD_SIZE-1=-1"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4: should be from 0 to WORLD_SIZE-1=3"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: should be from 0 to WORLD_SIZE-1=3"),
    ],
)
def test_variables_that_contradict_each_other_are_named(changes, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        World.from_env(TORCHRUN | changes, "cpu")
