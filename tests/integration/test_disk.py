"""Disks on a real cluster: data staged on the nodes, what was predicted, and cleaning beside runs that go on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.processes import wait_until
from tests.conftest import small
from tests.integration.test_door import LONG, QUEUE, User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

SHORT = ("trainer.max_steps=6", "trainer.val_every=3", "checkpoint.every_steps=2", "precision=fp32")


@pytest.fixture(scope="module")
def user(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """One user, who asks for a folder of their own on each node."""
    made = User(cluster, tmp_path_factory.mktemp("disk"))
    made.env |= {"NODE_DISK": str(made.folder / "node")}  # handed on by sbatch: the nodes are one machine here
    yield made
    made.module("launcher", "cancel", "runs", "--grace", "0")


def wait_for(user: User, name: str, *states: str) -> None:
    """Until all runs of a sweep are in one of ``states``."""
    assert wait_until(lambda: all(row["state"] in states for row in user.rows(f"runs/{name}")), 90), user.rows(
        f"runs/{name}"
    )


def taken(folder: Path) -> tuple[int, int]:
    """Bytes, and files and folders, below ``folder``."""
    paths = list(folder.rglob("*"))
    return sum(path.lstat().st_size for path in paths if path.is_file()), len(paths)


def test_a_sweep_whose_data_are_staged_takes_what_was_predicted_and_is_cleaned_beside_one_that_runs(user: User):
    words = (
        "trainer.seed=1,2",
        "hardware.tasks_per_node=2",
        "checkpoint.at_end=state",
        "data.stage=$NODE_DISK",
        *SHORT,
    )
    shown = user.module("launcher.run", *QUEUE, "launch.name=demo", *small(*words), "launch.dry_run=true").stdout
    number = r"([\d.]+) (k|M)B in ([\d,]+) files in the end"
    amount, unit, files = re.search(f"in all, .*, {number}", shown).groups()  # type: ignore[union-attr]
    assert not (user.folder / "runs").exists() and not (user.folder / "node").exists()

    user.submit("demo", *words)
    user.submit("long", *LONG)
    wait_for(user, "demo", "COMPLETED")
    demo = user.folder / "runs" / "demo"
    n_bytes, n_files = taken(demo)
    predicted = float(amount) * {"k": 1e3, "M": 1e6}[unit]
    assert predicted == pytest.approx(n_bytes, rel=0.2), f"{shown}\n{n_bytes} bytes"
    assert int(files.replace(",", "")) == pytest.approx(n_files, abs=25)

    (copy,) = [path for path in (user.folder / "node").glob(f"seemore-{os.getuid()}/*") if path.is_dir()]
    logs = [path.read_text() for path in demo.glob("*/logs/rank*.log")]
    assert len(logs) == 4 and sum(log.count("once for this node") for log in logs) == 1, (
        "two jobs of two ranks: one copy"
    )
    assert (next(copy.iterdir()) / "images.u8").stat().st_size > 0

    wait_for(user, "long", "RUNNING")
    went = json.loads(user.module("launcher", "clean", "runs", "--keep-best", "--yes", "--json").stdout)
    assert {one["kind"] for one in went} == {"state"} and all("/demo/" in one["path"] for one in went)
    assert taken(demo)[0] < 0.75 * n_bytes
    assert [row["state"] for row in user.rows("runs")].count("COMPLETED") == 2
    run = next(demo.glob("*/plan.json")).parent
    assert "/best-" in user.module("vlm", "evaluate", str(run), "--limit", "2", "--json").stdout
    again = user.module("launcher.run", *QUEUE, "launch.name=demo", *small(*words))
    assert "0 submitted, 2 done or queued already" in again.stderr
    assert [row["state"] for row in user.rows("runs/long")] == ["RUNNING"]


def test_a_variable_that_the_node_has_not_fails_the_run_in_one_line_and_is_not_requeued(user: User):
    (row,) = user.submit("unset", "data.stage=$NOWHERE_SET", *SHORT)
    wait_for(user, "unset", "FAILED")
    (row,) = user.rows("runs/unset")
    assert row["reason"].startswith("data.stage=$NOWHERE_SET: NOWHERE_SET is not set on ") and row["attempts"] == 1
