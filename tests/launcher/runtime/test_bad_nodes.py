"""Which nodes a run avoids, decided from the lines of its attempts alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.bad_nodes import Culprit, Exclusion, culprit, exclude, exclusions, to_exclude
from launcher.runtime.policy import record, what_broke
from tests.launcher.runtime.ranks import toy_plan


def failed(kind: str = "OSError", host: str = "n2", after_another: bool = False) -> dict[str, object]:
    return {"kind": kind, "host": host, "after_another": after_another}


@pytest.mark.parametrize(
    ("first", "only_node", "killed_on", "found"),
    [
        (failed("NodeFailed"), None, None, Culprit("n2", True)),
        (failed("NodeFailed"), "n2", None, Culprit("n2", True)),
        (failed(), None, "n7", Culprit("n2", False)),
        (failed("Hung"), None, None, None),  # who waits for a rank that hangs tells, too
        (failed("AllReduceFailed"), None, "n7", None),
        (failed("Hung"), "n2", None, Culprit("n2", False)),
        (failed("PeerLost", after_another=True), None, "n7", Culprit("n7", False)),
        (failed("PeerLost", after_another=True), None, None, None),
        (failed("Stopped"), None, "n7", Culprit("n7", False)),  # by srun, when another one was killed
        (None, None, "n7", Culprit("n7", False)),
        (None, "n1", "n7", Culprit("n1", False)),
        (None, None, None, None),
    ],
)
def test_whose_fault_it_was(first, only_node, killed_on, found):
    assert culprit(first, only_node, lambda: killed_on) == found


def broke(node: str | None = None) -> dict[str, object]:
    return {"event": "requeue", "reason": "broke down: oh", "broke_down": True, "node": node}


STOPPED = {"event": "requeue", "reason": "preempted"}
GONE = {"event": "exclude", "node": "n9", "reason": "oh"}
MAYBE, SURELY = Culprit("n1", False), Culprit("n1", True)


@pytest.mark.parametrize(
    ("events", "now", "most", "out"),
    [
        ([], SURELY, 2, True),
        ([], MAYBE, 2, False),
        ([broke("n1")], MAYBE, 2, True),
        ([broke("n1"), STOPPED, STOPPED], MAYBE, 2, True),  # what is nobody's fault does not come between
        ([broke("n2")], MAYBE, 2, False),
        ([broke("n1"), broke("n2")], MAYBE, 2, False),
        ([broke("n1"), broke(None)], MAYBE, 2, False),
        ([broke("n1")], None, 2, False),
        ([broke("n1"), GONE], MAYBE, 2, True),
        ([broke("n1"), GONE], MAYBE, 1, False),
        ([], SURELY, 0, False),
        ([{**GONE, "node": "n1"}], SURELY, 9, False),  # already
    ],
)
def test_when_a_node_is_excluded(events, now, most, out):
    found = to_exclude(events, now, "broke down: oh", most)
    assert (found is not None) == out
    if found:
        twice = "" if now.certain else "the run broke down there twice in a row: "
        assert found == Exclusion("n1", f"{twice}broke down: oh")


NODES = st.sampled_from(["n1", "n2", "n3", "n4"])
ENDS = st.one_of(st.none(), st.builds(Culprit, NODES, st.booleans()), st.just("preempted"))


@given(st.lists(ENDS, max_size=30), st.integers(0, 3))
def test_never_more_than_so_many_never_one_twice_never_on_a_preemption(ends, most):
    events: list[dict[str, object]] = []
    blamed: list[str] = []
    for end in ends:
        before = exclusions(events)
        if end == "preempted":
            events.append(STOPPED)
        else:
            if found := to_exclude(events, end, "broke down: oh", most):
                assert end is not None and found.node == end.node, "only the culprit of this very attempt"
                assert end.certain or blamed[-1:] == [end.node], "or of two in a row"
                events.append({"event": "exclude", "node": found.node, "reason": found.reason})
            blamed.append(end.node if end else "")
            events.append(broke(end.node if end else None))
        assert len(exclusions(events)) <= most
        if end == "preempted":
            assert exclusions(events) == before
    nodes = [one.node for one in exclusions(events)]
    assert len(set(nodes)) == len(nodes)


def test_what_was_written_is_read_and_what_is_damaged_is_none(tmp_path):
    rundir = toy_plan(tmp_path).rundir
    rundir.path.mkdir(parents=True)
    exclude(rundir, "7_1", Exclusion("n2", "oh"))
    rundir.add_attempt_event(event="exclude", node=None)
    exclude(rundir, "8", Exclusion("n3", "ah"))
    exclude(rundir, "8", Exclusion("n2", "again"))
    with rundir.attempts.open("a") as file:
        file.write('{"event": "exclude", "no')
    assert exclusions(rundir.attempt_events()) == [Exclusion("n2", "oh"), Exclusion("n3", "ah")]
    assert exclusions(rundir.attempt_events(), 1) == [Exclusion("n2", "oh")]
    assert exclusions(rundir.attempt_events(), 0) == []


def test_the_line_of_a_requeue_names_the_node_only_where_the_run_broke_down(tmp_path):
    rundir = toy_plan(tmp_path).rundir
    rundir.path.mkdir(parents=True)
    record(rundir, "7", "broke down: oh", "n2")
    record(rundir, "7", "preempted")
    first, second = rundir.attempt_events()
    assert (first["broke_down"], first["node"]) == (True, "n2") and "node" not in second


@pytest.mark.parametrize("kind", ["Hung", "NodeFailed", "AllReduceFailed"])
def test_what_ends_as_one_that_was_stopped_does_broke_down(tmp_path, kind):
    rundir = toy_plan(tmp_path).rundir
    rundir.failure("i1", 1).parent.mkdir(parents=True)
    rundir.add_attempt_event(event="start", attempt=1, job_id="7", incarnation="i1", step=0, restarts=0)
    record_of = failed(kind) | {"rank": 1, "message": "oh", "code": 76, "time": "1"}
    rundir.failure("i1", 1).write_text(json.dumps(record_of))
    assert what_broke(rundir, "7", 76, 0) == (70, f"rank 1 on n2: {kind}: oh")


@pytest.mark.parametrize(("code", "what"), [(137, (137, "a rank was killed (SIGKILL)")), (76, (76, "rank 0 on n1: "))])
def test_ranks_that_are_stopped_because_one_was_killed_were_not_asked_to(tmp_path, code, what):
    rundir = toy_plan(tmp_path).rundir
    rundir.failure("i1", 0).parent.mkdir(parents=True)
    rundir.add_attempt_event(event="start", attempt=1, job_id="7", incarnation="i1", step=None, restarts=0)
    record_of = failed("Stopped", "n1") | {"rank": 0, "message": "stopped on request", "code": 76, "time": "1"}
    rundir.failure("i1", 0).write_text(json.dumps(record_of))
    found = what_broke(rundir, "7", code, 0)
    assert found[0] == what[0] and found[1].startswith(what[1])
