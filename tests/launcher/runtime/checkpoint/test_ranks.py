"""Two and three real ranks that save and resume together: all or none, and each gets back its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def played(folder, size):
    """What each rank found in each act."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "tests.launcher.runtime.checkpoint.rank_acts", str(folder)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SUBMITIT", "TORCHELASTIC"))}
    kept |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            words, cwd=REPOSITORY, env=kept | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        ends = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0] * size, [stderr[-2000:] for _, stderr in ends]
    return [json.loads(stdout) for stdout, _ in ends]


@pytest.fixture(scope="module", params=[2, 3])
def stage(request, tmp_path_factory):
    return played(tmp_path_factory.mktemp("stage"), request.param)


@pytest.fixture
def ranks(stage):
    """``ranks("act")``: what each rank found in it."""
    return lambda act: [said[act] for said in stage]


def test_each_rank_gets_back_its_own_tensors_values_and_random_numbers(ranks):
    for said in ranks("each_its_own"):
        assert said["same"] and said["random"] and said["size"] == len(ranks("each_its_own"))
        assert said["new rank"] == "rank 0"


def test_equal_tensors_are_written_once(ranks):
    found = ranks("each_its_own")
    files = {"MANIFEST.json", "model.safetensors", "mine.safetensors", "rank0000.json"}
    for rank in range(1, len(found)):
        files |= {f"mine.rank{rank:04d}.safetensors", f"rank{rank:04d}.json"}
    assert all(said["files"] == sorted(files) for said in found)


def test_where_one_rank_cannot_write_nobody_commits_and_all_know(ranks):
    full = {"failures": 1, "error": "No space left on device", "committed": 1}
    for said in ranks("one_cannot_write"):
        assert (said["second"], said["there"]) == (full, [1])
        assert said["third"] == {"failures": 0, "error": "No space left on device", "committed": 3}
        assert (said["then"], said["same"]) == ([3, 1], True)


def test_where_rank_0_fails_at_any_stage_nobody_commits_and_all_know(ranks):
    for said in ranks("main_cannot"):
        assert [s["failures"] for s in said["said"]] == [1, 2, 3]
        assert {s["error"] for s in said["said"]} == {"No space left on device"}
        assert (said["last"]["failures"], said["last"]["committed"], said["there"]) == (0, 9, [9])


def test_best_weights_that_fail_leave_no_rank_waiting(ranks):
    for rank, said in enumerate(ranks("best_cannot")):
        assert (said["committed"], said["there"], said["then"]) == (1, [1], [2, 1])
        assert said["failures"] == (1 if rank == 0 else 0)


def test_weights_that_are_not_finite_are_known_to_all(ranks):
    assert ranks("not_finite") == [{"not finite": "weight", "committed": None, "there": []}] * len(ranks("not_finite"))


def test_that_another_attempt_has_the_run_is_known_to_all(ranks):
    for said in ranks("superseded"):
        assert said == {"superseded": "attempt 2 on here has taken the run over", "there": []}


def test_ranks_that_save_different_steps_commit_nothing(ranks):
    found = ranks("other_steps")
    for said in found:
        assert said["error"] == f"the ranks save different steps: {list(range(1, len(found) + 1))}"
        assert (said["failures"], said["committed"], said["there"]) == (1, None, [])


def test_what_one_rank_cannot_read_is_passed_over_by_all(ranks):
    found = ranks("one_cannot_read")
    last = len(found) - 1
    for said in found:
        assert (said["step"], said["same"]) == (1, True)
        newest, middle = said["problems"]
        assert f"mine.rank{last:04d}.safetensors is damaged" in newest
        assert f"(on rank {last}, " in middle and "Input/output error" in middle
        assert "none of its 3 checkpoints can be used" in said["refused"]
    assert len({json.dumps(said["problems"]) for said in found}) == 1
