"""Ranks on several nodes of a real Slurm learn what one process learns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from tests.conftest import SMALL
from tests.integration.user import User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

RUN = (*SMALL, "precision=fp32", "trainer.max_steps=50", "trainer.val_every=10", "trainer.batch_size=8",
       "model.dropout=0", "data.count=80", "site=disposable", "site.slurm_conf=null", "tracker=csv")  # fmt: skip


def losses(run: Path) -> dict[tuple[str, str], float]:
    """Every logged loss by (split, step)."""
    with (run / "metrics.csv").open() as file:
        return {
            (row["split"], row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == "loss"
        }


def test_two_nodes_of_two_ranks_train_and_validate_as_one_process_does(cluster: Cluster, tmp_path: Path):
    user = User(cluster, tmp_path / "home")
    alone = user.type("launcher.run", *RUN, "launch.name=alone")
    assert alone.returncode == 0, alone.stderr
    four = user.type(
        "launcher.run", *RUN, "hydra/launcher=submitit_slurm", "hardware.nodes=2", "hardware.tasks_per_node=2",
        "launch.name=four", "launch.wait=true",
    )  # fmt: skip
    assert four.returncode == 0, four.stdout + four.stderr
    (one,), (ranks,) = ((user.home / "runs" / name).glob("*/metrics.csv") for name in ("alone", "four"))
    expected, found = losses(one.parent), losses(ranks.parent)
    assert len(expected) == 55 and expected.keys() == found.keys()
    worst = max(abs(expected[key] - found[key]) for key in expected)
    assert worst < 1e-4
    (start,) = [event for event in _events(ranks.parent) if event["event"] == "start"]
    assert start["hosts"] == ["n1", "n2"] and start["job_id"]
    assert {p.name for p in (ranks.parent / "logs").iterdir()} == {f"rank{rank}.log" for rank in range(4)}


def _events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
