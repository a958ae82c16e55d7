"""Counting starts and progress: held against the words of its definition, for any history."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.progress import began_since_requeue, requeues, starts, without_progress


def start(step: int | None, job: str = "12") -> dict[str, Any]:
    """As it stands in the file; versions before 0.2 wrote no step."""
    return {"event": "start", "job_id": job} | ({} if step is None else {"step": step})


def requeue(reason: str = "preempted", job: str = "12") -> dict[str, Any]:
    return {"event": "requeue", "job_id": job, "reason": reason}


END = {"event": "end", "job_id": "12", "step": 9, "code": 75}
STEPS = st.one_of(st.none(), st.integers(0, 5))
EVENTS = st.lists(
    st.one_of(
        st.builds(start, STEPS, st.sampled_from(["12", "12_3", "13"])),
        st.builds(requeue, st.sampled_from(["preempted", "out of time"]), st.sampled_from(["12", "13"])),
        st.just(END),
    ),
    max_size=12,
)


@given(steps=st.lists(STEPS, max_size=8), newest=st.integers(0, 6))
def test_starts_in_a_row_that_led_nowhere(steps, newest):
    events = [start(step) for step in steps]
    begun = [step or 0 for step in steps]

    def progressed(i: int) -> bool:
        return any(later > begun[i] for later in begun[i + 1 :]) or newest > begun[i]

    expected = 0
    while expected < len(begun) and not progressed(len(begun) - 1 - expected):
        expected += 1
    assert without_progress(events, "12", newest) == expected
    assert starts(events, "12") == len(begun)


@given(events=EVENTS, newest=st.integers(0, 6))
def test_laws(events, newest):
    idle, tries = without_progress(events, "12", newest), starts(events, "12")
    assert 0 <= idle <= tries
    others = [event for event in events if event["job_id"] == "12" and event["event"] != "end"]
    assert (idle, tries) == (without_progress(others, "12", newest), starts(others, "12")), "other jobs do not matter"
    if began_since_requeue(events, "12", 0):
        assert without_progress(events, "12", 7) == 0, "a newer checkpoint than any start had is progress"
    assert without_progress([*events, start(newest)], "12", newest) >= 1
    assert starts([*events, start(3)], "12") == tries + 1


def test_what_broke_down_before_it_could_say_that_it_began_counts_by_its_requeue():
    events = [start(0), END, requeue(), requeue(), requeue()]
    assert starts(events, "12") == 3 and without_progress(events, "12", 0) == 3
    assert without_progress(events, "12", 4) == 2, "the first one saved"
    assert not began_since_requeue(events, "12", 3) and not began_since_requeue([], "12", 0)
    assert began_since_requeue([*events, start(4)], "12", 3)
    told = [*events, start(4) | {"restarts": 3}]
    assert began_since_requeue(told, "12", 3) and not began_since_requeue(told, "12", 4), "Slurm requeued it by itself"


def test_requeues_are_counted_by_their_reason():
    events = [requeue("out of time"), requeue("preempted"), requeue("out of time", "13"), start(1)]
    assert requeues(events, "12", "out of time") == 1
