"""The benchmark of submitting measures both sides on a real Slurm; how fast is for a person to read."""

from __future__ import annotations

import json

import pytest

from sweeps.__main__ import main

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


def test_submitting_a_few_members_is_held_against_the_stock_launcher(capfd: pytest.CaptureFixture[str]):
    assert main(["bench", "submit", "--members", "8", "--rounds", "1", "--json"]) == 0
    ((row,),) = [json.loads(line)["rows"] for line in capfd.readouterr().out.splitlines()]
    assert row["sbatch_calls"] == 1 and row["status_s"] > 0
    assert row["ours_s"] > 0 and row["stock_s"] > 0 and row["times_faster"] == row["stock_s"] / row["ours_s"]
