"""What is decided about each run when the same command is typed again: one action for each state and rule."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.manage.states import ACTIVE, GONE, RunState
from launcher.runtime.errors import ExitCode, RunsNotDone, UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.jobs import Job
from launcher.submission.reconcile import (
    Action,
    Decision,
    Rule,
    decide,
    decisions,
    described,
    nothing_to_do,
    require_none_failed,
)
from launcher.submission.submit import claim_folders
from tests.launcher.jobs import job

STATES = (
    "PLANNED", "SUBMITTED", "RUNNING", "REQUEUED", "STALLED", "PREEMPTED", "CANCELLED", "COMPLETED", "FAILED",
)  # fmt: skip


def state(name: str, *, gone: bool = False) -> RunState:
    return RunState("a", "/runs/s/a", (), name, reason=GONE if gone else "why", job_id=None if gone else "7")


# state, then what is done by the rules never, failed and stale; and by stale where other code made it
TABLE = [
    ("PLANNED", "start", "start", "start", "start"),
    ("SUBMITTED", "adopt", "adopt", "adopt", "adopt"),
    ("RUNNING", "leave", "leave", "leave", "leave"),
    ("REQUEUED", "leave", "leave", "leave", "leave"),
    ("STALLED", "leave", "leave", "leave", "leave"),
    ("PREEMPTED", "resume", "resume", "resume", "resume"),
    ("CANCELLED", "resume", "resume", "resume", "resume"),
    ("COMPLETED", "skip", "skip", "skip", "anew"),
    ("FAILED", "keep", "retry", "keep", "anew"),
]


@pytest.mark.parametrize(("name", "never", "failed", "stale", "other"), TABLE)
def test_each_state_has_its_action(name, never, failed, stale, other):
    rules = [Rule.of(word) for word in ("never", "failed", "stale")]
    assert [decide(state(name), rule).action for rule in rules] == [never, failed, stale]
    assert decide(state(name), Rule.of("stale"), other_code=True).action == other
    assert decide(state(name), Rule.of("never"), other_code=True).action == never
    assert decide(state(name), Rule.of("failed"), other_code=True).action == failed


def test_a_stalled_run_without_a_process_goes_on():
    assert {decide(state("STALLED", gone=True), Rule.of(word)).action for word in ("never", "failed", "stale")} == {
        "resume"
    }


def test_a_run_that_is_named_is_run_again_where_it_failed():
    assert decide(state("FAILED"), Rule.of("never").by_name()).action == "retry"
    assert decide(state("FAILED"), Rule.of("stale").by_name(), other_code=True).action == "anew"


@given(
    st.sampled_from(STATES) | st.text(max_size=5), st.booleans(), st.booleans(), st.booleans(), st.booleans()
)  # a status file may hold any word
def test_what_is_alive_or_done_is_never_started_and_what_stopped_always_is(name, gone, failed, stale, other):
    seen = state(name, gone=gone)
    decision = decide(seen, Rule(failed=failed, stale=stale), other_code=other)
    assert decision.action in get_args(Action) and decision.state == name and decision.run_id == "a"
    if seen.is_active:
        assert not decision.begins and decision.action in ("adopt", "leave") and name in ACTIVE
    elif name not in ("COMPLETED", "FAILED"):
        assert decision.action in ("start", "resume")
    if decision.action == "anew":
        assert stale and other and name in ("COMPLETED", "FAILED")
    if decision.action == "retry":
        assert failed and name == "FAILED"


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [job(tmp_path, number) for number in range(4)]


def decided(jobs: list[Job], rule: str = "never", code: str | None = "today") -> list[Decision]:
    return decisions(_sweep(jobs), [one.plan for one in jobs], Rule.of(rule), code)


def _sweep(jobs: list[Job]) -> SweepDir:
    return SweepDir(jobs[0].plan.rundir.path.parent)


class TestHere:
    def test_runs_are_known_by_their_own_files_and_locks(self, jobs):
        claim_folders(jobs)
        for one, name in zip(jobs, ["RUNNING", "RUNNING", "REQUEUED", "FAILED"], strict=True):
            one.plan.rundir.write_status(state=name, reason="bad luck", heartbeat=1e12)
        with jobs[0].plan.rundir.lock():
            found = decided(jobs)
        assert [d.action for d in found] == ["leave", "resume", "resume", "keep"]
        assert found[3].reason == "bad luck"

    def test_nothing_is_written(self, jobs, tmp_path):
        assert {d.action for d in decided(jobs)} == {"start"}
        assert list(tmp_path.iterdir()) == []

    def test_other_code_is_told_where_it_is_known(self, jobs):
        for one, code in zip(jobs, ["today", "before", None, "before"], strict=True):
            claim_folders([one])
            text = one.plan.rundir.plan.read_text()
            made = "null" if code is None else f'"{code}"'
            one.plan.rundir.plan.write_text(text.replace('"code": null', f'"code": {made}'))
            one.plan.rundir.write_status(state="COMPLETED")
        jobs[3].plan.rundir.write_status(state="FAILED", reason="bad luck")
        assert [d.other_code for d in decided(jobs)] == [False, True, False, True]
        assert [d.action for d in decided(jobs, "stale")] == ["skip", "anew", "skip", "anew"]
        assert [d.action for d in decided(jobs, "stale", code=None)] == ["skip", "skip", "skip", "keep"]
        lines = described(_sweep(jobs), decided(jobs))
        assert "3 COMPLETED: are done, 1 of them made by other code (launch.retry=stale makes them anew)" in lines
        assert f"  {jobs[3].plan.rundir.path}: bad luck" in lines
        assert (
            "1 FAILED: are left as they are, 1 of them made by other code (launch.retry=stale makes them anew)" in lines
        )

    def test_a_folder_of_another_science_is_refused(self, jobs):
        claim_folders(jobs[:1])
        rundir = jobs[0].plan.rundir
        rundir.plan.write_text(rundir.plan.read_text().replace('"number": 0', '"number": 9'))
        rundir.write_status(state="COMPLETED")
        with pytest.raises(UserError, match="belongs to another config"):
            decided(jobs[:1])


def test_all_done_is_seen_without_slurm_and_only_where_all_is_remembered(jobs):
    claim_folders(jobs)
    sweep, plans = _sweep(jobs), [one.plan for one in jobs]
    sweep.add_members((one.plan.run_id, one.overrides) for one in jobs[:3])
    for one in jobs[:3]:
        one.plan.rundir.write_status(state="COMPLETED")
    assert nothing_to_do(sweep, plans, Rule(), None) is None
    assert {d.action for d in nothing_to_do(sweep, plans[:3], Rule(), None) or []} == {"skip"}
    jobs[3].plan.rundir.write_status(state="COMPLETED")
    assert nothing_to_do(sweep, plans, Rule(), None) is None, "one of them is no member yet"


def test_those_left_as_failed_end_a_command_that_waits(jobs):
    found = [decide(state(name), Rule()) for name in ("COMPLETED", "FAILED")]
    with pytest.raises(RunsNotDone, match=r"1 of 2 runs FAILED before.*launch\.retry=failed.*why") as caught:
        require_none_failed(_sweep(jobs), found)
    assert caught.value.code == ExitCode.USER_ERROR
    require_none_failed(_sweep(jobs), found[:1])


def test_foreign_lines_in_a_sweeps_files_hide_no_member(tmp_path):
    sweep = SweepDir(tmp_path)
    sweep.members.write_text('{"run_id": "a", "overrides": ["x=1"]}\n{"mine": 1}\n[]\n{"run_id": 3}\n{"run_id": "b"}\n')
    assert sweep.read_members() == {"a": ["x=1"], "b": []}
    sweep.add_members([("a", ()), ("c", ("x=2",))])
    assert sweep.read_members() == {"a": ["x=1"], "b": [], "c": ["x=2"]}
    for said in ('{"requests": [1, {"metric": "m"}]}', '{"requests": {}}', "{}"):
        sweep.requests.write_text(said)
        assert sweep.read_requests() == ([{"metric": "m"}] if "metric" in said else [])
