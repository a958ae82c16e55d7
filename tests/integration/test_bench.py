"""The benchmark of submitting measures both sides on a real Slurm; how fast is for a person to read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeps.__main__ import main
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


def test_submitting_a_few_members_is_held_against_the_stock_launcher(capfd: pytest.CaptureFixture[str]):
    assert main(["bench", "submit", "--members", "8", "--rounds", "1", "--json"]) == 0
    ((row,),) = [json.loads(line)["rows"] for line in capfd.readouterr().out.splitlines()]
    assert row["sbatch_calls"] == 1 and row["status_s"] > 0
    assert row["ours_s"] > 0 and row["stock_s"] > 0 and row["times_faster"] == row["stock_s"] / row["ours_s"]


def test_a_benchmark_that_is_ended_leaves_no_cluster_behind():
    words = [sys.executable, "-m", "sweeps", "bench", "pack", "--members", "4", "--no-stock"]
    with tempfile.TemporaryDirectory() as folder:  # sockets stand below it: pytest's own is too deep
        env = os.environ | {"TMPDIR": folder}
        bench = subprocess.Popen(
            words, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert bench.stderr is not None and "nodes are up" in bench.stderr.readline()
        bench.send_signal(signal.SIGTERM)
        said = bench.communicate(timeout=120)[1]
        left = list(Path(folder).iterdir())
    assert (bench.returncode, left) == (128 + signal.SIGTERM, []) and "it is down" in said
