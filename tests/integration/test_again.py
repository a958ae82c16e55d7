"""Going on by hand on a real Slurm: ``resume``, ``retry`` and the plain command continue one and the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.processes import wait_until
from tests.integration.conftest import Client
from tests.integration.user import TASK, User

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

STEPS = "trainer.max_steps=8"
# Holds at steps 2, 4 and 6: somebody has time to cancel it there.
HOLDING = TASK.replace("while step == 2 and", "while step in (2, 4, 6) and step != start and")
HOLDING = HOLDING.replace("    said = ", "    start = step\n    said = ")


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, client: Client) -> Iterator[User]:
    """A user of the shared cluster; no job of theirs is left."""
    user = User(cluster, tmp_path / "home dir")
    (user.home / "toytask.py").write_text(HOLDING)
    (tmp_path / "elsewhere").mkdir()
    yield user
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def cancel_at(user: User, step: int) -> str:
    """Cancel the one run once it holds at ``step``; its id, once Slurm too has let go of it."""
    reached = wait_until(lambda: any(int(words[0]) == step for words in user.said()), 60)
    assert reached, user.runs()
    assert user.type("launcher", "cancel", "runs/sweep").returncode == 0
    assert wait_until(lambda: state(user) == "CANCELLED", 60), state(user)
    (run,) = user.runs()
    return run


def state(user: User) -> str:
    (row,) = json.loads(user.type("launcher", "status", "runs/sweep", "--json").stdout)
    return str(row["state"])


def test_a_cancelled_run_is_continued_by_resume_by_retry_and_by_the_same_command(user: User):
    elsewhere = user.home.parent / "elsewhere"
    user.submit(STEPS, single=True)
    run = cancel_at(user, 2)

    left = user.type("launcher", "retry", "runs/sweep")
    assert "left as they are: 1 CANCELLED" in left.stderr and len(user.job_ids()) == 1
    resumed = user.type("launcher", "resume", str(user.sweep / run), cwd=elsewhere)
    assert resumed.returncode == 0 and resumed.stdout.split()[:2] == ["SUBMITTED", user.job_ids()[-1]], resumed.stderr
    asked_twice = user.type("launcher", "resume", run)
    assert " already: " in asked_twice.stdout and len(user.job_ids()) == 2
    assert cancel_at(user, 4) == run

    retried = user.type("launcher", "retry", user.job_ids()[-1])
    assert retried.returncode == 0 and len(user.job_ids()) == 3, retried.stderr
    assert cancel_at(user, 6) == run

    user.submit(STEPS, single=True)
    user.wait()
    assert len(user.job_ids()) == 4 and list(user.runs()) == [run]
    assert [int(words[0]) for words in user.said()] == [1, 2, 3, 4, 5, 6, 7, 8], "none is missing, none was done twice"
    attempts = [json.loads(line) for line in (user.sweep / run / "attempts.jsonl").read_text().splitlines()]
    starts = [event for event in attempts if event["event"] == "start"]
    assert [event["job_id"] for event in starts] == user.job_ids()
    done = user.type("launcher", "resume", run)
    assert (done.returncode, done.stdout) == (0, f"COMPLETED already: {user.sweep / run}\n")
    assert not list(elsewhere.iterdir())


def test_what_failed_of_a_sweep_goes_on_with_todays_code(user: User):
    user.submit("trainer.seed=1,666,2", "trainer.max_steps=1")
    user.wait()
    user.wait(states=["FAILED"])
    user.wait(count=2)
    (user.home / "toytask.py").write_text(HOLDING.replace("== 666", "== 667").replace('"first"', '"second"'))
    user.type("launcher", "status", "runs/sweep", "--watch")
    retried = user.type("launcher", "retry", "runs/sweep")
    assert retried.returncode == 0 and "left as they are: 2 COMPLETED" in retried.stderr, retried.stderr
    user.wait(count=3)
    assert len(user.job_ids()) == 2 and sorted(words[1] for words in user.said()) == ["first"] * 3 + ["second"]
    assert len(list((user.sweep / "code").iterdir())) == 2 and len(user.runs()) == 3
