"""Means through shared memory, over real processes: what gloo finds, to the same bits on every rank."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from launcher.runtime import shared_average
from launcher.runtime.shared_average import share_memory
from launcher.runtime.world import World
from tests.launcher.runtime.test_distributed import free_port

# Each rank averages buffers of odd sizes: less than a number a rank, not divisible, one and a half pieces.
_RANK = """
import hashlib, os, signal, sys, torch
import torch.distributed as dist
from launcher.runtime import shared_average
from launcher.runtime.distributed import process_group
from launcher.runtime.shared_average import share_memory
from launcher.runtime.world import World

shared_average._PIECE_BYTES = 4096
world = World.from_env(os.environ, "cpu")
torch.set_num_threads(1)
with process_group(world):
    memory = shared_average._shared_by_all(world)
    average = shared_average._Average(world, *memory)
    for size in (1, 2, 5, 1000, 1024, 1537):
        torch.manual_seed(size + 100 * world.rank)
        values = torch.randn(size) * 100
        exact = [torch.empty(size) for _ in range(world.size)]
        dist.all_gather(exact, values)
        average.average(values)
        assert torch.equal(values, sum(exact[1:], exact[0]) / world.size), size  # added in the order of the ranks
        bits = [None] * world.size
        dist.all_gather_object(bits, hashlib.sha256(values.numpy().tobytes()).hexdigest())
        assert len(set(bits)) == 1, size
    torch.manual_seed(0)
    models = [torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(30, 40, dtype=torch.double)) for _ in range(2)]
    for mine, theirs in zip(models[0].parameters(), models[1].parameters()):
        theirs.data.copy_(mine.data)
    assert share_memory(models[0], world)
    for model in models:
        for _ in range(2):
            model.zero_grad()
            model(torch.arange(30.0, dtype=torch.double) * (world.rank + 1)).square().sum().backward()
    for mine, theirs in zip(models[0].parameters(), models[1].parameters()):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-12)
    print("same", flush=True)
    if "die" in sys.argv:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        average.average(torch.ones(10))
"""


def ranks(size: int, *words: str) -> list[tuple[int, str, str]]:
    port, started = str(free_port()), []
    for rank in range(size):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        env = ["env", *(f"{k}={v}" for k, v in variables.items()), "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*env, sys.executable, "-c", textwrap.dedent(_RANK), *words], **pipes))
    said = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *words) for process, words in zip(started, said, strict=True)]


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_the_mean_and_the_same_bits(size):
    assert ranks(size) == [(0, "same\n", "")] * size


def test_a_rank_that_is_killed_is_missed_at_once():
    waiting, killed = ranks(2, "die")
    assert killed[0] == -signal.SIGKILL
    assert waiting[0] == 1 and "Connection closed by peer: a rank that shares memory" in waiting[2]


@pytest.mark.parametrize(
    "world",
    [World(), World(size=4, nodes=2), World(size=2, device="cuda:0")],
    ids=["one rank", "two nodes", "GPUs"],
)
def test_only_ranks_of_one_machine_on_cpus_share_memory(world):
    assert not share_memory(None, world)


def test_processors_that_reorder_stores_are_left_to_gloo(monkeypatch):
    monkeypatch.setattr(shared_average.platform, "machine", lambda: "aarch64")
    assert not share_memory(None, World(size=2))
