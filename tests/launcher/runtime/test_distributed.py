"""Collectives: in a world of one, and over two real processes that gloo joins."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from launcher.runtime.distributed import (
    Agreement,
    Channel,
    process_group,
    require_device,
    settle_buckets,
    start_sum_over_ranks,
    sum_over_ranks,
)
from launcher.runtime.errors import UserError
from launcher.runtime.world import World

_RANK = """
import json, os
import torch
import torch.distributed as dist
from launcher.runtime.distributed import Agreement, Channel, process_group, start_sum_over_ranks, sum_over_ranks
from launcher.runtime.world import World

world = World.from_env(os.environ, "cpu")
with process_group(world):
    values = torch.tensor([1.5, 10.0]) * (world.rank + 1)
    said = {
        "rank": dist.get_rank(),
        "backend": dist.get_backend(),
        "sum": sum_over_ranks(values).tolist(),
        "in place": values.tolist(),
    }
    for question, flag in (("none", False), ("only one", world.rank == 1), ("all", True)):
        agreement = Agreement([0.0, -1.0])
        words = [float(flag), float(world.rank)]
        said[question] = [agreement.largest(words), agreement.largest([0.0, 0.0])]
        agreement.close()
    channel = Channel()
    said["channel"] = [channel.from_main(f"of {world.rank}"), channel.from_all(f"of {world.rank}")]
    later = torch.tensor([1.0, 2.0]) * (world.rank + 1)
    start_sum_over_ranks(later).wait()
    said["later"] = later.tolist()
said["open"] = dist.is_initialized()
print(json.dumps(said))
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def two_ranks():
    """What each of two ranks found."""
    port = str(free_port())
    started = []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env = ["env", *(f"{k}={v}" for k, v in variables.items()), "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}"]
        started.append(subprocess.Popen([*env, sys.executable, "-c", _RANK], stdout=subprocess.PIPE, text=True))
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return [json.loads(answer) for answer in answers]


def test_two_processes_are_one_group_of_gloo_for_the_time_of_the_block(two_ranks):
    assert [said["rank"] for said in two_ranks] == [0, 1]
    assert {said["backend"] for said in two_ranks} == {"gloo"}
    assert [said["open"] for said in two_ranks] == [False, False]


def test_a_sum_is_over_all_ranks_elementwise_and_in_place(two_ranks):
    for said in two_ranks:
        assert said["sum"] == [4.5, 30.0]
        assert said["in place"] == [4.5, 30.0]


def test_all_hear_the_largest_of_each_word_a_call_later(two_ranks):
    for said in two_ranks:
        first = [0.0, -1.0]
        assert said["none"] == [first, [0.0, 1.0]]
        assert said["only one"] == said["all"] == [first, [1.0, 1.0]]


def test_a_channel_carries_messages_from_the_first_and_from_all(two_ranks):
    for said in two_ranks:
        assert said["channel"] == ["of 0", ["of 0", "of 1"]]


def test_a_sum_begun_early_is_there_after_the_wait(two_ranks):
    assert [said["later"] for said in two_ranks] == [[3.0, 6.0]] * 2


def test_a_world_of_one_needs_no_group():
    with process_group(World()):
        assert not dist.is_initialized()
        values = torch.tensor([1.0, 2.0])
        assert sum_over_ranks(values) is values
        assert values.tolist() == [1.0, 2.0]
        agreement, channel = Agreement([0.0, 0.0]), Channel()
        assert (agreement.largest([1.0, 0.5]), agreement.largest([0.0, 0.0])) == ([1.0, 0.5], [0.0, 0.0])
        agreement.close()
        assert (channel.from_main("a"), channel.from_all("a")) == ("a", ["a"])
        assert start_sum_over_ranks(values) is None


def test_the_cpu_is_always_there():
    assert require_device("cpu") is None


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_a_device_of_another_name_is_refused(device):
    with pytest.raises(UserError, match=f"^device '{device}': should be cpu or cuda$"):
        require_device(device)


def test_a_gpu_that_is_not_here_is_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"^device 'cuda:99': .*; use cpu \(hardware=cpu, --device cpu\)$"):
        require_device("cuda:99")


@pytest.mark.parametrize("stop_after", [1, 2, None])
def test_throw_away_passes_leave_no_trace(stop_after):
    model = torch.nn.Linear(3, 1)
    weights = model.weight.detach().clone()
    seen = []

    def drawn() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def one_pass() -> None:
        model(torch.ones(3)).backward()
        seen.append(drawn())

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    went_on = settle_buckets(one_pass, model.parameters(), lambda: len(seen) == stop_after)
    assert went_on == (stop_after is None) and len(seen) == (stop_after or 2)
    assert set(seen) == {drawn()}  # each draws what is drawn behind them
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.equal(model.weight, weights)
