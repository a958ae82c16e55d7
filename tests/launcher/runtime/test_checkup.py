"""The doctor's program on two ranks of this machine, answered as the doctor would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from launcher.runtime.checkup import answer, ask, main, result
from launcher.runtime.files import write_json
from tests.conftest import REPOSITORY


def start(folder, rank, size, seconds=60):
    slurms = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURMD_NODENAME": f"n{rank + 1}"}
    env = os.environ | slurms | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-P", "-m", "launcher.runtime.checkup", str(folder), "--seconds", str(seconds)]
    return subprocess.Popen(words, env=env, cwd=folder)


def test_two_ranks_meet_and_tell_what_they_found(tmp_path):
    begun = time.monotonic()
    ranks = [start(tmp_path, rank, 2) for rank in (0, 1)]
    while any(rank.poll() is None for rank in ranks):
        for rank in (0, 1):
            if (tmp_path / ask(rank)).exists() and not (tmp_path / answer(rank)).exists():
                write_json(tmp_path / answer(rank), {"time": time.time() - 100})
        assert time.monotonic() - begun < 60
        time.sleep(0.01)
    assert [rank.returncode for rank in ranks] == [0, 0]
    found = [json.loads((tmp_path / result(rank)).read_text()) for rank in (0, 1)]
    assert [one["host"] for one in found] == ["n1", "n2"] and not any(one["errors"] for one in found)
    assert all(99 < one["clock_ahead_s"] < 101 for one in found)
    assert found[0]["round_trips_s"]["1"] >= 0 and all(one["all_reduce_s"] > 0 for one in found)


def test_a_rank_that_is_alone_says_so_in_time(tmp_path):
    env = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    assert main(env, [str(tmp_path), "--seconds", "0.1"]) == 1
    errors = json.loads((tmp_path / result(1)).read_text())["errors"]
    assert "ping did not appear" in errors["files"] and set(errors) == {"files", "clock", "all_reduce"}
