"""What a run's state is, for every combination of what our files say and what Slurm says."""

from __future__ import annotations

import dataclasses
import json

import pytest

from launcher.manage.states import run_states
from launcher.manage.survey import survey
from launcher.manage.table import lines, records
from launcher.manage.targets import Target
from launcher.runtime.bad_nodes import Exclusion
from launcher.runtime.errors import UserError
from launcher.slurm_cli import Slurm
from tests.launcher.made_sweep import MadeSweep
from tests.launcher.recorded_slurm import AWAY, NO_ACCOUNTING, RecordedSlurm


@pytest.fixture
def slurm(tmp_path):
    return RecordedSlurm(tmp_path / "slurm")


@pytest.fixture
def sweep(tmp_path):
    return MadeSweep(tmp_path / "runs" / "demo")


def state_of(sweep, slurm):
    (state,) = run_states(sweep.dir, slurm and Slurm(slurm.env, patient=False))
    return state


def own(sweep, said, started=True, age_s=0.0, reason=""):
    """One run with job 12 whose own files say ``said``."""
    sweep.run("aaa", "x=1")
    sweep.submitted("aaa")
    if said:
        sweep.status("aaa", said, reason=reason, age_s=age_s)
    if started:
        sweep.started("aaa")


@pytest.mark.parametrize(
    ("said", "started", "slurms", "state"),
    [
        (None, False, "PENDING", "SUBMITTED"),
        (None, False, "CONFIGURING", "RUNNING"),
        (None, False, "RUNNING", "RUNNING"),
        (None, True, "RUNNING", "RUNNING"),
        ("RUNNING", True, "RUNNING", "RUNNING"),
        ("RUNNING", True, "COMPLETING", "RUNNING"),
        ("RUNNING", True, "SUSPENDED", "RUNNING"),
        ("RUNNING", True, "PENDING", "REQUEUED"),
        ("PREEMPTED", True, "PENDING", "REQUEUED"),
        ("PREEMPTED", True, "REQUEUE_HOLD", "REQUEUED"),
        ("PREEMPTED", True, "REQUEUED", "REQUEUED"),
        ("PREEMPTED", False, "PENDING", "SUBMITTED"),  # submitted again by hand
        ("REQUEUED", True, "RUNNING", "REQUEUED"),  # its batch shell waits for Slurm to end it
        ("REQUEUED", True, "COMPLETING", "REQUEUED"),
        ("REQUEUED", True, "PENDING", "REQUEUED"),
        ("REQUEUED", True, "CANCELLED", "CANCELLED"),
        ("REQUEUED", True, "FAILED", "PREEMPTED"),  # Slurm did not take it back
        ("REQUEUED", True, "NODE_FAIL", "FAILED"),
        ("REQUEUED", False, "PENDING", "SUBMITTED"),
        ("FAILED", False, "PENDING", "SUBMITTED"),
        ("FAILED", True, "PENDING", "REQUEUED"),  # a rank lost its peers, then Slurm requeued for the node that failed
        ("FAILED", True, "RUNNING", "RUNNING"),  # as above, and it runs again; never submitted twice
        ("FAILED", True, "COMPLETING", "FAILED"),
        ("FAILED", True, "FAILED", "FAILED"),
        ("FAILED", True, "CANCELLED", "FAILED"),
        ("COMPLETED", True, "RUNNING", "COMPLETED"),
        ("COMPLETED", True, "FAILED", "COMPLETED"),
        ("COMPLETED", False, "PENDING", "COMPLETED"),
        ("PREEMPTED", True, "COMPLETED", "PREEMPTED"),
        ("PREEMPTED", True, "TIMEOUT", "PREEMPTED"),
        ("PREEMPTED", True, "PREEMPTED", "PREEMPTED"),
        ("PREEMPTED", True, "CANCELLED", "CANCELLED"),
        ("PREEMPTED", False, "FAILED", "FAILED"),
        (None, False, "CANCELLED", "CANCELLED"),
        ("RUNNING", True, "CANCELLED", "CANCELLED"),
        ("RUNNING", True, "TIMEOUT", "FAILED"),
        ("RUNNING", True, "NODE_FAIL", "FAILED"),
        ("RUNNING", True, "OUT_OF_MEMORY", "FAILED"),
        ("RUNNING", True, "FAILED", "FAILED"),
        ("RUNNING", True, "COMPLETED", "FAILED"),
        (None, False, "BOOT_FAIL", "FAILED"),
        (None, False, "DEADLINE", "FAILED"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("who", ["squeue", "sacct"])
def test_our_files_and_slurm_together(sweep, slurm, said, started, slurms, state, who):
    own(sweep, said, started)
    if who == "squeue":
        slurm.queue(("12", slurms))
    else:
        slurm.history(("12", slurms))
    if who == "sacct" and said == "FAILED" and started:
        state = "FAILED"  # not asked: squeue has forgotten it, so it is not going on
    assert state_of(sweep, slurm).state == state


@pytest.mark.parametrize(
    ("said", "started", "state"),
    [
        (None, False, "CANCELLED"), (None, True, "FAILED"), ("RUNNING", True, "FAILED"), ("FAILED", True, "FAILED"),
        ("PREEMPTED", True, "PREEMPTED"), ("PREEMPTED", False, "PREEMPTED"), ("COMPLETED", True, "COMPLETED"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("accounting", [True, False])
def test_a_job_that_slurm_has_forgotten(sweep, slurm, said, started, state, accounting):
    own(sweep, said, started, age_s=100)
    if not accounting:
        slurm.says("sacct", err=NO_ACCOUNTING, code=1)
    found = state_of(sweep, slurm)
    assert found.state == state
    if said == "RUNNING":
        assert "left no word" in found.reason


def test_a_job_that_slurm_has_forgotten_may_live_on(sweep, slurm):
    own(sweep, "RUNNING")
    assert state_of(sweep, slurm).state == "RUNNING"


@pytest.mark.parametrize("slurms", ["", "FAILED", "COMPLETED", "TIMEOUT"])
@pytest.mark.parametrize(("said", "state"), [("RUNNING", "CANCELLED"), ("FAILED", "CANCELLED"), (None, "CANCELLED"),
                                             ("COMPLETED", "COMPLETED")])  # fmt: skip
def test_what_launcher_cancel_wrote_down_outlives_slurms_memory(sweep, slurm, slurms, said, state):
    own(sweep, said)
    sweep.dir.add_event("cancelled", "t1", jobs=["12"])
    slurm.queue(*([("12", slurms)] if slurms else []))
    assert state_of(sweep, slurm).state == state


def test_a_cancelled_job_is_not_cancelled_before_it_is_gone_nor_after_a_new_submission(sweep, slurm):
    own(sweep, "RUNNING")
    sweep.dir.add_event("cancelled", "t1", jobs=["12"])
    slurm.queue(("12", "COMPLETING"))
    assert state_of(sweep, slurm).state == "RUNNING"
    sweep.submitted("aaa", job="13", token="t2")
    slurm.queue(("13", "PENDING"), ("12", "CANCELLED"))
    assert state_of(sweep, slurm).state == "SUBMITTED"


@pytest.mark.parametrize(
    ("said", "started", "age_s", "state"),
    [
        (None, False, 0, "SUBMITTED"), ("RUNNING", True, 0, "RUNNING"), ("RUNNING", True, 700, "STALLED"),
        ("COMPLETED", True, 9999, "COMPLETED"), ("FAILED", True, 0, "FAILED"), ("PREEMPTED", True, 0, "PREEMPTED"),
        (None, True, 0, "RUNNING"), ("PREEMPTED", False, 0, "PREEMPTED"),
    ],
)  # fmt: skip
def test_without_slurm_our_files_decide(sweep, said, started, age_s, state):
    own(sweep, said, started, age_s)
    assert state_of(sweep, None).state == state


def test_a_job_that_gives_no_sign_of_life_is_stalled(sweep, slurm):
    own(sweep, "RUNNING", age_s=700)
    slurm.queue(("12", "RUNNING"), nodes="n[1-2]")
    found = state_of(sweep, slurm)
    assert (found.state, found.node, found.is_over) == ("STALLED", "n[1-2]", False)


@pytest.mark.parametrize(("slurms", "reason"), [("FAILED", "stopped on request"), ("TIMEOUT", "out of time")])
def test_why_a_preempted_run_was_not_requeued(sweep, slurm, slurms, reason):
    own(sweep, "PREEMPTED", reason="stopped on request")
    slurm.queue(("12", slurms))
    assert state_of(sweep, slurm).reason == reason


def test_a_withdrawn_submission_leaves_a_run_planned_and_a_cut_off_one_says_so(sweep, slurm):
    sweep.run("aaa")
    sweep.submitted("aaa", job=None)
    assert "cut off" in state_of(sweep, slurm).reason
    sweep.dir.add_event("withdrawn", "t1", reason="Slurm has no such job")
    found = state_of(sweep, slurm)
    assert (found.state, found.reason, found.is_over, slurm.calls) == ("PLANNED", "", True, [])


def test_runs_without_a_job_alive_quiet_and_dead(sweep, slurm):
    for run_id, age_s in (("alive", 0), ("held", 100), ("dead", 100)):
        sweep.run(run_id)
        sweep.status(run_id, "RUNNING", age_s=age_s)
    with sweep.dir.run("held").lock():
        states = {s.run_id: s for s in run_states(sweep.dir, Slurm(slurm.env))}
    assert {name: s.state for name, s in states.items()} == {"alive": "RUNNING", "held": "RUNNING", "dead": "STALLED"}
    assert states["dead"].is_over and slurm.calls == []


def test_why_it_waits_and_when_it_starts(sweep, slurm):
    own(sweep, None, started=False)
    slurm.queue(("12", "PENDING"), reason="Resources", start="2026-11-22T06:00:00")
    found = state_of(sweep, slurm)
    assert (found.reason, found.start) == ("Resources", "2026-11-22T06:00:00")
    slurm.queue(("12", "PENDING"), reason="Priority", start="N/A")
    assert state_of(sweep, slurm).start == ""


@pytest.mark.parametrize(("script", "state"), [("/x/submissions/t1.sh", "SUBMITTED"), ("/y/other.sh", "CANCELLED")])
def test_another_clusters_job_of_the_same_number_is_not_ours(sweep, slurm, script, state):
    own(sweep, None, started=False)
    slurm.queue(("12", "PENDING"), script=script)
    assert state_of(sweep, slurm).state == state


def test_elements_of_an_array(sweep, slurm):
    for run_id in "abcd":
        sweep.run(run_id)
    sweep.submitted(*"abcd")
    sweep.started("b", job="12_1")
    sweep.status("b", "RUNNING")
    slurm.queue(("12_0", "PENDING"), ("12_1", "PENDING"), ("12_2", "RUNNING"))
    slurm.history(("12_3", "TIMEOUT"))
    assert [s.state for s in run_states(sweep.dir, Slurm(slurm.env))] == ["SUBMITTED", "REQUEUED", "RUNNING", "FAILED"]
    slurm.queue(("12", "CANCELLED"))  # squeue's line for all that were cancelled before they began
    slurm.history(("12_1", "COMPLETED"))
    assert [s.state for s in run_states(sweep.dir, Slurm(slurm.env))] == [
        "CANCELLED",
        "FAILED",
        "CANCELLED",
        "CANCELLED",
    ]
    slurm.queue()
    slurm.history(("12_1", "COMPLETED"), ("12_[0,2-3%256]", "CANCELLED by 0"))
    assert [s.state for s in run_states(sweep.dir, Slurm(slurm.env))] == [
        "CANCELLED",
        "FAILED",
        "CANCELLED",
        "CANCELLED",
    ]


def test_a_run_that_ends_while_slurm_is_asked_is_not_called_failed(sweep, slurm):
    own(sweep, "RUNNING")
    slurm.does("squeue", f"""echo '{{"state": "COMPLETED"}}' > {sweep.dir.run("aaa").status}""")
    slurm.queue(("12", "COMPLETED"))
    assert state_of(sweep, slurm).state == "COMPLETED"


@pytest.mark.parametrize(
    "text", ["", "garbage\n", "|||\n", "12|PENDING\n", "\x00\xff|||||||\n", "slurm: hello | there\n"]
)
def test_garbage_of_squeue_and_sacct_is_passed_over(sweep, slurm, text):
    own(sweep, None, started=False)
    slurm.says("squeue", text)
    slurm.says("sacct", text.replace("12|PENDING", "13|PENDING"))
    assert state_of(sweep, slurm).state == "CANCELLED"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": null}', '{"state": "RUNNING", "heartbeat": "soon"}'])
def test_a_broken_status_file_hides_no_other_run(sweep, slurm, content):
    for run_id in ("aaa", "bbb"):
        sweep.run(run_id)
    sweep.status("bbb", "COMPLETED")
    sweep.dir.run("aaa").status.write_text(content)
    sweep.dir.run("aaa").attempts.write_text('{"event": "start", "hosts": 7}\nno json\n')
    states = run_states(sweep.dir, Slurm(slurm.env))
    assert [s.run_id for s in states] == ["aaa", "bbb"] and states[1].state == "COMPLETED"


def test_a_root_of_sweeps_costs_one_squeue_and_one_sacct_a_cluster(tmp_path, slurm):
    conf = tmp_path / "other.conf"
    conf.touch()
    targets = []
    for name, cluster in (("a", None), ("b", None), ("c", str(conf))):
        sweep = MadeSweep(tmp_path / "runs" / name)
        for run_id in ("r1", "r2"):
            sweep.run(f"{name}{run_id}")
            sweep.submitted(f"{name}{run_id}", job=f"{ord(name)}{run_id[1]}", token=run_id, slurm_conf=cluster)
        targets.append(Target(sweep.dir))
    slurm.queue(("971", "PENDING"))
    slurm.history(("972", "COMPLETED"))
    seen = survey(targets, slurm.env)
    assert len(slurm.called("squeue")) == len(slurm.called("sacct")) == 2
    assert [s.state for s in seen.states][:2] == ["SUBMITTED", "FAILED"]
    asked = [call.partition("--jobs=")[2] for call in slurm.called("sacct")]
    assert sorted(asked) == ["972,981,982", "991,992"]
    survey(targets, slurm.env | {"SLURM_CONF": str(conf)})
    assert len(slurm.called("squeue")) == 3, "the environment's own cluster is stronger"


def test_nothing_is_asked_of_slurm_where_our_files_know(sweep, slurm):
    own(sweep, "COMPLETED")
    assert survey([Target(sweep.dir)], slurm.env).states[0].state == "COMPLETED"
    assert slurm.calls == []


def test_slurm_away_and_slurm_absent_leave_one_line_and_our_own_files(sweep, slurm, tmp_path):
    own(sweep, "RUNNING")
    slurm.says("squeue", err=AWAY, code=1)
    seen = survey([Target(sweep.dir)], slurm.env)
    assert seen.states[0].state == "RUNNING" and len(slurm.called("squeue")) == 1
    assert seen.problems == (f"squeue: {AWAY}",)
    seen = survey([Target(sweep.dir)], {"PATH": str(tmp_path)})
    assert seen.states[0].state == "RUNNING" and "no Slurm on PATH" in seen.problems[0]
    seen = survey([Target(sweep.dir)], slurm.env | {"SLURM_CONF": str(tmp_path / "none")})
    assert "there is no such file" in seen.problems[0]
    with pytest.raises(UserError, match="Unable to contact"):
        state_of(sweep, slurm)


def in_chain(sweep, said, started=("12",), handed=""):
    """One run with jobs 12, 13 and 14, of which each goes on where the one before ends."""
    sweep.run("aaa", "x=1")
    sweep.submitted("aaa")
    for number in (3, 4):
        sweep.submitted("aaa", job=f"1{number}", token=f"t{number}", follows="t1")
    if said:
        sweep.status("aaa", said)
    for job in started:
        sweep.started("aaa", job)
    if handed:
        sweep.dir.run("aaa").add_attempt_event(event="requeue", job_id=started[-1], reason="preempted", next=handed)


@pytest.mark.parametrize(
    ("said", "started", "handed", "queue", "state", "job", "reason"),
    [
        (None, (), "", "PENDING PENDING PENDING", "SUBMITTED", "12", "Dependency"),
        ("RUNNING", ("12",), "", "RUNNING PENDING PENDING", "RUNNING", "12", ""),
        ("RUNNING", ("12",), "", "PENDING PENDING PENDING", "REQUEUED", "12", "Dependency"),  # by Slurm itself
        ("REQUEUED", ("12",), "13", "RUNNING PENDING PENDING", "REQUEUED", "13", "goes on in job 13 (Dependency)"),
        ("REQUEUED", ("12",), "13", "FAILED PENDING PENDING", "REQUEUED", "13", "goes on in job 13 (Dependency)"),
        ("PREEMPTED", ("12",), "", "PREEMPTED PENDING PENDING", "REQUEUED", "13", "goes on in job 13 (Dependency)"),
        ("RUNNING", ("12",), "", "NODE_FAIL PENDING PENDING", "REQUEUED", "13", "goes on in job 13 (Dependency)"),
        ("RUNNING", ("12",), "", "NODE_FAIL CANCELLED PENDING", "REQUEUED", "14", "goes on in job 14 (Dependency)"),
        (None, (), "", "PREEMPTED PENDING PENDING", "SUBMITTED", "13", "goes on in job 13 (Dependency)"),
        ("RUNNING", ("12", "13"), "", "FAILED RUNNING PENDING", "RUNNING", "13", ""),
        ("REQUEUED", ("12",), "13", "FAILED RUNNING PENDING", "REQUEUED", "13", ""),
        ("PREEMPTED", ("12",), "", "CANCELLED PENDING PENDING", "CANCELLED", "12", ""),
        ("FAILED", ("12",), "", "FAILED PENDING PENDING", "FAILED", "12", ""),
        ("COMPLETED", ("12",), "", "COMPLETED PENDING PENDING", "COMPLETED", "12", ""),
        ("REQUEUED", ("12",), "13", "FAILED CANCELLED CANCELLED", "CANCELLED", "13", ""),
    ],
)
def test_a_run_waits_for_its_successor(sweep, slurm, said, started, handed, queue, state, job, reason):
    in_chain(sweep, said, started, handed)
    slurm.queue(*zip(("12", "13", "14"), queue.split(), strict=True), reason="Dependency")
    found = state_of(sweep, slurm)
    assert (found.state, found.job_id, found.reason) == (state, job, reason)
    assert found.waits_for == ("Dependency" if "Dependency" in reason else ""), "Slurm's own word"
    assert found.is_active == (state in ("SUBMITTED", "RUNNING", "REQUEUED")), "the same command adopts it"


def test_the_nodes_that_a_run_avoids_are_told_with_why(sweep, slurm):
    own(sweep, "REQUEUED")
    sweep.dir.run("aaa").add_attempt_event(event="exclude", node="n2", reason="broke down: oh")
    slurm.queue(("12", "PENDING"))
    state = state_of(sweep, slurm)
    assert (state.state, state.excluded) == ("REQUEUED", (Exclusion("n2", "broke down: oh"),))
    (record,) = records([(sweep.dir, state)])
    assert json.loads(json.dumps(record))["excluded"] == [{"node": "n2", "reason": "broke down: oh"}]
    head, line = lines([(sweep.dir, state)])
    assert "avoids" in head and line[head.index("avoids") :].startswith("n2")
    assert "avoids" not in lines([(sweep.dir, dataclasses.replace(state, excluded=()))])[0]
