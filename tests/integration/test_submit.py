"""Submitting to a real Slurm: what is frozen stays frozen, nothing is submitted twice, failures are failures."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import BASE, User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

HOLD = "+hydra.launcher.additional_parameters.hold=true"


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user of the shared cluster; no job of theirs is left."""
    yield User(cluster, tmp_path / "home dir")
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def slurm_state(client: Client, job: str) -> str:
    return client("sacct", "-n", "-P", "-X", "-j", job, "-o", "State").strip().split("\n")[-1]


def test_a_sweep_comes_back_at_once_with_receipts_and_completes(user: User, client: Client):
    done = user.submit("optim.lr=1e-3,2e-3", "trainer.seed=0,1", HOLD)
    (job,) = user.job_ids()
    rows = done.stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["SUBMITTED", f"{job}_{i}"] for i in range(4)]
    assert "optim.lr=0.001 trainer.seed=1" in rows[1] and "task.target" not in done.stdout
    assert "4 submitted" in done.stderr and "python -m launcher status" in done.stderr
    plans = [Path(p).parent.name for p in user.sweep.glob("*/plan.json")]
    assert sorted(plans) == sorted(row.split()[2] for row in rows)
    user.let_go()
    client("scontrol", "release", job)
    user.wait(count=4)
    lrs = sorted({float(words[2]) for words in user.said()})
    assert lrs == [0.001, 0.002]
    assert wait_until(lambda: slurm_state(client, f"{job}_3") == "COMPLETED", 30)
    again = user.submit("optim.lr=1e-3,2e-3", "trainer.seed=0,1")
    assert again.stdout.count("COMPLETED") == 4 and user.job_ids() == [job]


def test_choosing_slurm_submits_without_multirun_too(user: User):
    done = user.submit(single=True)
    assert done.stdout.split()[:2] == ["SUBMITTED", user.job_ids()[0]]
    user.let_go()
    user.wait()
    done = user.type("launcher.run", "hardware=slurm", *BASE, "optim.lr=0.5")
    assert done.returncode == 0 and "SUBMITTED" in done.stdout, done.stderr


def test_editing_source_and_config_changes_nothing_in_queued_and_requeued_jobs(user: User, client: Client):
    user.submit("optim.lr=0.25", HOLD, single=True)
    (job,) = user.job_ids()
    source = user.home / "toytask.py"
    source.write_text(source.read_text().replace("first", "second"))
    client("scontrol", "release", job)
    assert wait_until(lambda: len(user.said()) >= 2, 60)  # it waits in its second step
    source.write_text("raise RuntimeError('an edit leaked into a job')\n")
    client("scontrol", "requeue", job)
    assert wait_until(lambda: show_job(user.cluster, job).restarts == 1, 60)
    user.let_go()
    user.wait()
    assert {(words[1], words[2]) for words in user.said()} == {("first", "0.25")}
    assert {words[3] for words in user.said()} >= {"0", "1"}, "it went on after the requeue"
    code = next((user.sweep / "code").iterdir())
    assert "first" in (code / "toytask.py").read_text()
    assert not stat.S_IMODE((code / "toytask.py").stat().st_mode) & 0o222


def test_a_failed_run_is_failed_in_slurm_and_in_our_files(user: User, client: Client):
    done = user.submit("trainer.seed=0,666", "launch.wait=true", "trainer.max_steps=1", expect=1)
    assert "1 of 2 runs are not done" in done.stderr and "bad luck" in done.stderr
    assert "Traceback" not in done.stderr
    (job,) = user.job_ids()
    assert sorted(run["state"] for run in user.runs().values()) == ["COMPLETED", "FAILED"]
    assert wait_until(lambda: slurm_state(client, f"{job}_1") == "FAILED", 30)
    assert slurm_state(client, f"{job}_0") == "COMPLETED"


def test_waiting_hands_the_metric_to_a_sweeper(user: User):
    done = user.submit("optim.lr=1,2", "trainer.max_steps=1", "launch.wait=true")
    assert "2 COMPLETED" in done.stderr.splitlines()[-1]


def test_members_with_other_resources_get_an_array_of_their_own(user: User, client: Client):
    user.submit("trainer.seed=1,2", "hardware.nodes='${trainer.seed}'", "optim.lr=1,2", HOLD)
    jobs = user.job_ids()
    assert len(jobs) == 2
    assert sorted(show_nodes(client, f"{job}_0") for job in jobs) == ["1", "2"]


def show_nodes(client: Client, job: str) -> str:
    words = client("scontrol", "show", "job", "-o", job).split()
    return next(word.partition("=")[2].partition("-")[0] for word in words if word.startswith("NumNodes="))


BAD = {
    "partition": (("hydra.launcher.partition=nowhere",), "invalid partition"),
    "account": (("hydra.launcher.account=nobody",), "Invalid account"),
    "nodes": (("hardware.nodes=5",), "Node count"),
    "GPUs": (("hardware.gpus_per_node=3", "hardware.device=cpu"), "node configuration is not available"),
    "time": (("hydra.launcher.timeout_min=100000",), "time limit"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_slurm_would_not_run_is_refused_before_anything_is_queued(user: User, client: Client, what: str):
    words, said = BAD[what]
    done = user.submit("optim.lr=1,2", *words, expect=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.lower() in line.lower() and "Traceback" not in done.stderr
    assert not client("squeue", "--noheader") and user.job_ids() == []


def test_one_bad_shape_keeps_the_good_ones_from_being_queued(user: User, client: Client):
    user.submit("trainer.seed=1,9", "hardware.nodes='${trainer.seed}'", expect=1)
    assert not client("squeue", "--noheader")


def test_a_dry_run_shows_scripts_and_slurms_answer_and_changes_nothing(user: User, client: Client):
    nodes = ("trainer.seed=1,2", "hardware.nodes='${trainer.seed}'", "hardware.gpus_per_node=1", "hardware.device=cpu")
    done = user.submit(*nodes, "launch.dry_run=true")
    assert done.stdout.count("#!/bin/bash") == 2 and done.stdout.count("to start at") == 2
    assert "--kill-on-bad-exit=1" in done.stdout and "3.0 GPU-hours" in done.stdout
    assert not (user.home / "runs").exists() and not client("squeue", "--noheader")


def test_hostile_names_and_comments_are_inert(user: User, client: Client):
    bad = "$(touch canary); `touch canary`"
    user.submit(
        f"hydra.launcher.name='{bad}'", f"hydra.launcher.comment='{bad} \\' \"'", "trainer.max_steps=1", single=True
    )
    user.wait()
    assert not list(user.home.rglob("canary"))


def test_two_nodes_of_two_ranks_meet(user: User):
    user.submit("hardware.nodes=2", "hardware.tasks_per_node=2", "trainer.max_steps=1", single=True)
    user.wait()
    (run,) = user.runs()
    assert sorted(p.name for p in (user.sweep / run).glob("said.*")) == ["said.0", "said.1", "said.2", "said.3"]
    assert sorted(p.name for p in (user.sweep / run / "logs").iterdir()) == [f"rank{i}.log" for i in range(4)]


def test_a_preempted_job_saves_is_requeued_and_goes_on(user: User):
    user.submit(single=True)
    (job,) = user.job_ids()
    assert wait_until(lambda: len(user.said()) >= 2, 60)
    preempt(user.cluster, job)
    user.let_go()
    user.wait()
    steps = [int(words[0]) for words in user.said()]
    assert steps == [1, 2, 3], "no step is done twice"


def test_of_two_commands_at_once_one_wins(user: User):
    both = [user.start("launcher.run", "-m", "hydra/launcher=submitit_slurm", *BASE, "trainer.seed=range(0,40)")
            for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=120) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 1], [0, 0]), said
    assert len(user.job_ids()) == 1, "whoever came second found the runs queued, or the sweep in other hands"
    if codes == [0, 1]:
        assert any("another command is submitting it" in err for _, err in said)
