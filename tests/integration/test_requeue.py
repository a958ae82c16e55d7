"""Requeues on a real Slurm: what was preempted, stopped or broke down goes on; what was cancelled stays cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user of the shared cluster; no job of theirs is left."""
    yield User(cluster, tmp_path / "home")
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def submitted(user: User, *overrides: str) -> str:
    """One run; its job's id."""
    user.submit(*overrides, single=True)
    return user.job_ids()[-1]


def at_step_2(user: User, *overrides: str) -> str:
    """The same, once it waits in its second step."""
    job = submitted(user, *overrides)
    assert wait_until(lambda: len(user.said()) >= 2, 60)
    return job


def attempts(user: User, kind: str) -> list[dict[str, Any]]:
    """Events of the one run."""
    (path,) = user.sweep.glob("*/attempts.jsonl")
    return [event for line in path.read_text().splitlines() if (event := json.loads(line))["event"] == kind]


def reasons(user: User, job: str) -> list[str]:
    events = attempts(user, "requeue")
    assert {event["job_id"] for event in events} <= {job}
    return [event["reason"] for event in events]


def is_over(client: Client, job: str, state: str) -> bool:
    """Whether Slurm has ended the job so within a minute."""
    words = ("sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--format=State", "--jobs", job)
    return bool(wait_until(lambda: client(*words).splitlines()[-1:] == [state], 60))


def steps(user: User) -> list[int]:
    return [int(words[0]) for words in user.said()]


def test_a_preempted_job_goes_back_into_the_queue_and_goes_on(user: User):
    job = at_step_2(user)
    preempt(user.cluster, job)
    assert reasons(user, job) == ["preempted"]
    user.let_go()
    user.wait()
    assert steps(user) == [1, 2, 3] and show_job(user.cluster, job).restarts == 1


def test_a_job_that_was_asked_to_stop_goes_on_and_a_rank_that_was_killed_too(user: User, client: Client):
    job = at_step_2(user, "trainer.seed=9")  # kills itself in its second step, the first time
    assert wait_until(lambda: show_job(user.cluster, job).restarts == 1, 60)
    assert reasons(user, job) == ["broke down: a rank was killed (SIGKILL)"]
    assert wait_until(lambda: len(user.said()) >= 3, 60)
    client("scancel", "--signal=USR2", job)
    assert wait_until(lambda: show_job(user.cluster, job).restarts == 2, 60)
    assert reasons(user, job)[1:] == ["asked to stop"]
    user.let_go()
    user.wait()
    assert steps(user) == [1, 2, 2, 3], "at most what came after the last checkpoint is done again"


@pytest.mark.parametrize("most", [None, 0])
def test_a_job_that_is_out_of_time_goes_on_as_often_as_it_may(user: User, client: Client, most: int | None):
    # Slurm warns up to 30 s too early, and a job that has no step yet not at all: a minute is just long enough.
    words = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=15"]
    job = at_step_2(user, *words, *([] if most is None else [f"hydra.launcher.max_num_timeout={most}"]))
    if most == 0:
        assert is_over(client, job, "FAILED")
        assert reasons(user, job) == [] and len(attempts(user, "start")) == 1
        (status,) = user.runs().values()
        assert status["state"] == "PREEMPTED" and "out of time; max_num_timeout=0 " in status["reason"]
    else:
        assert wait_until(lambda: show_job(user.cluster, job).restarts == 1, 90)
        assert reasons(user, job) == ["out of time"]
        user.let_go()
        user.wait()
        assert steps(user) == [1, 2, 3]


def test_an_element_that_breaks_down_again_and_again_is_failed_and_others_are_not(user: User, client: Client):
    user.submit("trainer.seed=13,0", "requeue.max_without_progress=2", "trainer.max_steps=1")
    (array,) = user.job_ids()
    user.wait()
    assert is_over(client, f"{array}_0", "FAILED")
    (failed,) = [path for path in user.sweep.glob("*/status.json") if json.loads(path.read_text())["state"] == "FAILED"]
    said = json.loads(failed.read_text())["reason"]
    assert said.startswith("2 attempts in a row made no progress (last: rank 0 on ") and "unlucky" in said
    assert json.loads((failed.parent / "summary.json").read_text())["status"] == "FAILED"
    events = [json.loads(line)["event"] for line in (failed.parent / "attempts.jsonl").read_text().splitlines()]
    assert (events.count("start"), events.count("requeue")) == (2, 1)


@pytest.mark.parametrize("how", ["scancel", "launcher cancel"])
def test_a_cancelled_job_stays_cancelled(user: User, client: Client, how: str):
    job = at_step_2(user)
    if how == "scancel":
        client("scancel", job)
    else:
        assert user.type("launcher", "cancel", "runs/sweep").returncode == 0
    assert wait_until(lambda: show_job(user.cluster, job).state == "CANCELLED", 60)
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)
    assert (show_job(user.cluster, job).restarts, reasons(user, job)) == (0, [])
    (row,) = json.loads(user.type("launcher", "status", "runs/sweep", "--json").stdout)
    assert (row["state"], row["attempts"]) == ("CANCELLED", 1)


def test_a_cancelled_job_that_slurm_brings_back_ends_at_once(user: User, client: Client):
    job = at_step_2(user)
    client("scontrol", "requeuehold", job)
    assert wait_until(lambda: show_job(user.cluster, job).state == "PENDING", 60)
    (intent,) = user.events("intent")
    with (user.sweep / "submissions.jsonl").open("a") as file:  # as a cancel that crosses the requeue
        file.write(json.dumps({"event": "cancelled", "token": intent["token"], "jobs": [job]}) + "\n")
    client("scontrol", "release", job)
    assert is_over(client, job, "FAILED")
    assert len(attempts(user, "start")) == 1 and reasons(user, job) == []
    (status,) = user.runs().values()
    assert status["state"] == "CANCELLED"


def test_where_slurm_may_not_requeue_the_run_says_how_to_go_on(user: User, client: Client):
    job = at_step_2(user, "+hydra.launcher.additional_parameters.no-requeue=true")
    client("scancel", "--signal=USR2", job)
    assert is_over(client, job, "FAILED")
    (run,) = user.runs()
    status = user.runs()[run]
    words = f"saved; Slurm may not requeue it here: python -m launcher resume {user.sweep / run}"
    assert (status["state"], status["reason"]) == ("PREEMPTED", words)
