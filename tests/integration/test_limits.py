"""A cluster with small limits, and one whose controller dies: what is not taken stays planned, nothing runs twice."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.processes import wait_until
from slurm.render import Spec
from tests.integration.conftest import client_of
from tests.integration.user import User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


@pytest.fixture(scope="module")
def small(slurm_installed: None, folders: Callable[[], Path]) -> Iterator[Cluster]:
    with Cluster(folders(), Spec(nodes=1, accounting=True, max_array_size=3)) as running:
        yield running


@pytest.fixture
def user(small: Cluster, tmp_path: Path) -> Iterator[User]:
    yield User(small, tmp_path / "home")
    client = client_of(small, tmp_path)
    client("scancel", "--state=PENDING", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def test_a_sweep_is_cut_at_the_largest_array_and_queued_within_the_limit(user: User, small: Cluster, tmp_path: Path):
    client = client_of(small, tmp_path)
    limit = ("sacctmgr", "-i", "modify", "user", client("id", "-un").strip(), "set")
    client(*limit, "maxsubmitjobs=5")
    seeds = "trainer.seed=range(0,8)"
    done = user.submit(seeds, "trainer.max_steps=1")
    assert done.stdout.count("SUBMITTED") == 5 and done.stdout.count("PLANNED") == 3, done.stdout
    assert "3 stay PLANNED" in done.stderr
    assert [len(event["runs"]) for event in user.events("intent")][:1] == [3], "MaxArraySize is 3"
    user.wait(count=5)
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)
    again = user.submit(seeds, "trainer.max_steps=1")
    assert again.stdout.count("SUBMITTED") == 3 and again.stdout.count("COMPLETED") == 5
    user.wait(count=8)
    assert len(user.said()) == 8, "none ran twice"
    client(*limit, "maxsubmitjobs=-1")


def test_without_a_controller_the_plan_stays_and_the_same_command_submits_it(user: User, small: Cluster):
    (controller,) = [p for p in small.processes() if p.kind == "slurmctld"]
    os.kill(controller.pid, signal.SIGTERM)  # it saves what it knows
    assert wait_until(lambda: controller not in small.processes(), 30)
    done = user.submit("optim.lr=1,2", "trainer.max_steps=1", expect=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr and "slurm" in line.lower()
    assert len(user.runs()) == 2
    small.up()
    done = user.submit("optim.lr=1,2", "trainer.max_steps=1")
    assert done.stdout.count("SUBMITTED") == 2
    user.wait(count=2)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_command_cut_off_in_sbatch_is_cleared_up_by_the_next(user: User, moment: str):
    """The command and all its children are killed before or after Slurm has taken the array."""
    folder = user.home / "bin"
    folder.mkdir()
    real = shutil.which("sbatch")
    cut = "kill -9 $PPID; kill -9 $$"
    script = f"{cut}\n" if moment == "before" else f'"{real}" "$@" > /dev/null\n{cut}\n'
    fake = folder / "sbatch"
    fake.write_text(f'#!/bin/bash\ncase "$*" in *--test-only*) exec "{real}" "$@";; esac\n{script}')
    fake.chmod(0o755)
    user.env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    user.submit("trainer.seed=0,1,2", "trainer.max_steps=2", expect=-signal.SIGKILL)
    assert user.job_ids() == []
    user.env = {}
    done = user.submit("trainer.seed=0,1,2", "trainer.max_steps=2")
    user.let_go()  # not before: of runs that are done nothing is cleared up
    user.wait(count=3)
    assert len(user.said()) == 6, "two steps each: none ran twice"
    assert len(user.job_ids()) == 1 and len(user.events("withdrawn")) == (moment == "before")
    assert ("0 submitted" in done.stderr) == (moment == "after")
