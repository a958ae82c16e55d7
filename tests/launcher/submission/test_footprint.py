"""How many checkpoints are there at a time, and what trackers make of numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.footprint import Footprint
from launcher.runtime.settings import CheckpointSettings, TrackerSettings
from launcher.submission.footprint import Kind, Space, checkpoints, tracked

ONE = Footprint(steps=1, weights_bytes=1000, optimizer_bytes=2000)
POLICY = CheckpointSettings(every_steps=5, keep_last=2, keep_every=None, at_end="nothing", best=False)
STATE = Kind(ONE, POLICY, TrackerSettings(), 1).saved_bytes()[0]


def pruned(saves: list[int], policy: CheckpointSettings) -> tuple[int, int]:
    """The most states that lie there at a time, and how many in the end, where each save prunes as the saver does."""
    there: list[int] = []
    most = 0
    for number, step in enumerate(saves, start=1):
        there.append(step)
        most = max(most, len(there))
        if number >= policy.keep_last:
            newest = there[-policy.keep_last :]
            kept = [s for s in there if policy.keep_every and s % policy.keep_every == 0]
            there = sorted({*newest, *kept})
    return most, len(there)


@given(steps=st.integers(1, 200), every=st.integers(1, 20), last=st.integers(2, 5), kept=st.none() | st.integers(1, 40))
def test_as_many_states_are_there_as_the_saver_leaves(steps, every, last, kept):
    policy = replace(POLICY, every_steps=every, keep_last=last, keep_every=kept)
    most, left = pruned(list(range(every, steps + 1, every)), policy)
    found = checkpoints(replace(ONE, steps=steps), policy, 1)
    assert found.training.bytes // STATE == most
    assert found.ending.bytes // STATE == left
    assert found.end.bytes == 0


def test_a_run_that_keeps_its_state_saves_its_last_step_too():
    policy = replace(POLICY, every_steps=10, at_end="state")
    found = checkpoints(replace(ONE, steps=15), policy, 1)
    assert found.training.bytes // STATE == found.end.bytes // STATE == 2
    assert checkpoints(replace(ONE, steps=10), policy, 1).end.bytes // STATE == 1
    assert checkpoints(replace(ONE, steps=3), replace(policy, every_steps=None), 1).end.bytes // STATE == 1


def test_each_rank_adds_a_file_of_plain_values_and_a_log():
    one, four = (Kind(replace(ONE, steps=5), POLICY, TrackerSettings(), ranks) for ranks in (1, 4))
    assert four.saved_bytes()[0] - one.saved_bytes()[0] == 3 * 27_000
    assert four.need().fullest.files - one.need().fullest.files == 3 + 3 * 3 + 3


def test_only_trackers_that_write_here_count():
    logs = replace(ONE, records=10, numbers=100)
    assert tracked(logs, TrackerSettings()) == Space()
    assert tracked(logs, TrackerSettings(mlflow=True, mlflow_uri="http://host:5000")) == Space()
    assert tracked(logs, TrackerSettings(wandb=True, wandb_mode="disabled")) == Space()
    written = [tracked(logs, TrackerSettings(**{name: True})) for name in ("csv", "tensorboard", "mlflow", "wandb")]
    assert all(space.bytes > 100 * 36 and space.files >= 3 for space in written)


def test_a_task_that_does_not_tell_gets_the_rest_predicted():
    unknown = Kind(None, POLICY, TrackerSettings(csv=True), 1)
    assert unknown.saved_bytes() == (0, 0)
    assert unknown.need().fullest == unknown.need().end
    assert (
        0
        < unknown.need().end.bytes
        < Kind(replace(ONE, steps=5), POLICY, TrackerSettings(csv=True), 1).need().fullest.bytes
    )


@pytest.mark.parametrize("field", ["pictures", "own_files"])
def test_pictures_and_what_the_task_writes_count(field):
    more = replace(ONE, **{field: 3, "picture_bytes": 300, "own_bytes": 300})
    tracker = TrackerSettings(wandb=True)
    plain, rich = (Kind(one, POLICY, tracker, 1).need().end for one in (ONE, more))
    assert rich - plain == Space(600, 3)
