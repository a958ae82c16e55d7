"""Ranks that are killed, hang or raise, storms of preemptions, and a second launch: each run ends as if nothing was."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from launcher.runtime.rundir import checkpoint_of
from slurm.cluster import Cluster
from slurm.faults import preempt, show_job
from slurm.processes import wait_until
from tests.integration.conftest import client_of
from tests.integration.lab import BASE, FOUR, ONE, TWO, Lab, Run, assert_same, redone, rows, samples

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

EVERY = 20
"""Steps between checkpoints, in ``lab.BASE``."""


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One user for all tests here; no job of theirs is left."""
    lab = Lab(cluster, tmp_path_factory.mktemp("lab") / "home")
    yield lab
    client = client_of(cluster, lab.home)
    client("scancel", "--user=" + client("id", "-un").strip())
    assert wait_until(lambda: not client("squeue", "--noheader"), 60)


def begun_at(run: Run) -> list[int]:
    """The step that each attempt began with."""
    return [int(event["step"]) for event in run.events("start")]


def reasons(run: Run) -> list[str]:
    return [event["reason"] for event in run.events("requeue")]


def wait_for_attempt(run: Run, attempt: int) -> None:
    run.wait(lambda: len(run.events("start")) >= attempt)


def saved(run: Run) -> int:
    """The newest step that is saved."""
    return max((checkpoint_of(path.name) or ("", 0, 0))[1] for path in run.checkpoints())


def trained(run: Run) -> int:
    """The last step that was done."""
    return max(step for step, _ in samples(run))


def test_a_random_rank_is_killed_at_a_random_step_five_times(lab: Lab):
    wish = (*FOUR, "trainer.max_steps=260")
    run = lab.run("killed", *wish)
    drawn = random.Random(18)
    for attempt, step in enumerate(sorted(drawn.sample(range(10, 250), 5)), start=1):
        run.order("rank", drawn.randrange(4))
        run.order("die", step)
        whole = lab.uninterrupted(*wish)
        wait_for_attempt(run, attempt)
        run.wait(lambda: not (run.path.parent / "orders" / "die").exists())
        run.wait(lambda: not run.ranks(), 30)  # all of them: none hangs, waiting for the one that is gone
        kept, under_way = saved(run), bool(list(run.path.glob("checkpoints/.unfinished-*")))
        assert trained(run) - kept <= EVERY * (1 + under_way), (step, run.story())
        wait_for_attempt(run, attempt + 1)
        assert begun_at(run)[attempt] == kept
    assert_same(run, whole)
    assert reasons(run) == ["broke down: a rank was killed (SIGKILL)"] * 5
    assert show_job(lab.cluster, run.job).restarts == 5


def test_rank_0_is_killed_once_it_has_saved_on_request(lab: Lab):
    wish = (*TWO, "trainer.max_steps=120")
    run, whole = lab.run("killed-saved", *wish), lab.uninterrupted(*wish)
    run.order("die_saved", 1)
    run.wait_for_step(33)
    client_of(lab.cluster, lab.home)("scancel", "--signal=USR2", run.job)
    run.wait(lambda: run.events("requeue"))
    reached = trained(run)
    wait_for_attempt(run, 2)
    assert begun_at(run)[1] == reached, "nothing is done again"
    assert_same(run, whole)
    assert not (run.path.parent / "orders" / "die_saved").exists(), "it was killed, it did not just stop"
    assert reasons(run) == ["broke down: a rank was killed (SIGKILL)"]


def test_preempted_as_soon_as_it_runs_it_gets_on_until_its_attempts_are_used_up(lab: Lab):
    wish = (*ONE, "trainer.max_steps=150")
    run = lab.run("storm", *wish, "requeue.max_attempts=4")
    for attempt in (1, 2, 3, 4):
        wait_for_attempt(run, attempt)
        preempt(lab.cluster, run.job)
    steps = [*begun_at(run), saved(run)]
    assert len(steps) == 5 and all(before < after for before, after in pairwise(steps)), steps
    assert redone(run) == 0 and reasons(run) == ["preempted"] * 3
    assert_given_up(run, "requeue.max_attempts=4 attempts are used up (last: preempted)")

    resumed = lab.type("launcher", "resume", str(run.path))
    assert resumed.returncode == 0, resumed.stderr
    run.wait_for("COMPLETED")
    assert_same(run, lab.uninterrupted(*wish))
    assert begun_at(run)[4:] == steps[4:] and redone(run) == 0


def test_a_bug_that_comes_again_ends_the_run_after_the_third_attempt_without_progress(lab: Lab):
    wish = (*ONE, "trainer.max_steps=100")
    run = lab.run("bug", *wish, "requeue.max_without_progress=3")
    run.order("often", 1)
    run.order("raise", 30)
    whole = lab.uninterrupted(*wish)
    run.wait(lambda: show_job(lab.cluster, run.job).state == "FAILED", 240)
    assert begun_at(run) == [0, 20, 20, 20] and len(reasons(run)) == 3
    assert all("ordered to break down in step 30" in reason for reason in reasons(run))
    assert_given_up(run, "3 attempts in a row made no progress (last: rank 0 on ", "ordered to break down in step 30")

    (run.path.parent / "orders" / "raise").unlink()
    done = lab.type("launcher.run", "hydra/launcher=submitit_slurm", *BASE, *wish, "launch.name=bug")
    assert done.returncode == 0, done.stderr
    run.wait_for("COMPLETED")
    assert_same(run, whole)
    assert begun_at(run) == [0, 20, 20, 20, 20]


def assert_given_up(run: Run, *reason: str) -> None:
    """It is FAILED for ``reason``, say its files, ``launcher status`` and Slurm, and nothing starts it again."""
    run.wait(lambda: show_job(run.lab.cluster, run.job).state == "FAILED")
    for said in (run.read("status.json"), run.read("summary.json")):
        assert said.get("state", said.get("status")) == "FAILED", said
        assert all(word in said["reason"] for word in reason), said
    (row,) = rows(run.lab, run.path.parent.name)
    assert (row.state, row.slurm) == ("FAILED", "FAILED") and all(word in row.reason for word in reason), row
    assert show_job(run.lab.cluster, run.job).restarts == len(run.events("start")) - 1


def test_a_rank_that_hangs_is_found_by_the_one_that_waits_for_it(lab: Lab):
    wish = (*TWO, "trainer.max_steps=120")
    run = lab.run("frozen", *wish, "watchdog.timeout_s=12")
    run.order("rank", 1)
    run.order("freeze", 45)
    whole = lab.uninterrupted(*wish)
    run.wait(lambda: run.ranks().get(1))
    frozen = run.ranks()[1]
    run.wait_for("REQUEUED")
    told = lab.type("launcher", "logs", str(run.path))
    run.wait(lambda: frozen not in run.ranks().values())
    said = (run.path / "logs" / "rank0.hang.txt").read_text()
    assert "made no progress for 12 s (last: save after step 44)" in said
    assert "in backward" in said and "exact_task.py" in said, said
    record = json.loads((run.path / "logs" / "rank0.flight.json").read_text())
    waiting = [entry for entry in record["entries"] if not entry["retired"]]
    assert (waiting[-1]["profiling_name"], waiting[-1]["process_group"][1]) == ("gloo:all_reduce", "default_pg")
    assert told.returncode == 0 and "made no progress for 12 s" in told.stderr, told.stderr
    assert_same(run, whole)
    (reason,) = reasons(run)
    assert reason.startswith("broke down: rank 0 on ") and "made no progress for 12 s" in reason
    assert begun_at(run) == [0, 40]


def test_a_second_launch_of_a_run_that_trains_is_refused_and_harms_nothing(lab: Lab):
    wish = (*TWO, "trainer.max_steps=200")
    run = lab.run("twice", *wish)
    run.order("hold", 60)
    whole = lab.uninterrupted(*wish)
    run.wait(lambda: (run.path.parent / "orders" / "holding.0").exists())
    (start,) = run.events("start")
    here = lab.type("launcher.run", *BASE, *wish[len(TWO) :], "launch.name=twice")
    assert here.returncode == 1 and len(here.stderr.splitlines()) == 1 and not here.stdout, (here.stdout, here.stderr)
    assert "another process is training it" in here.stderr and f"job {run.job}" in here.stderr, here.stderr
    assert f"attempt 1 on {start['hosts'][0]}, process {run.ranks()[0]}" in here.stderr, here.stderr
    again = lab.type("launcher.run", "hydra/launcher=submitit_slurm", *BASE, *wish, "launch.name=twice")
    assert again.returncode == 0 and "0 submitted, 1 done or queued already" in again.stderr, again.stderr
    assert again.stdout.split()[:2] == ["RUNNING", run.job], again.stdout
    (run.path.parent / "orders" / "hold").unlink()
    assert_same(run, whole)
    assert len(run.events("start")) == 1 and reasons(run) == []
