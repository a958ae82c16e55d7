"""What has to stay of a run because of another one."""

from __future__ import annotations

import pytest

from launcher.manage.removable import states_of_children_to_come
from launcher.runtime.files import write_json
from launcher.runtime.sweepdir import SweepDir


@pytest.mark.parametrize(
    ("began", "state", "needed"), [(False, None, True), (True, None, False), (False, "COMPLETED", False)]
)
def test_the_state_that_a_child_is_still_to_begin_from_stays(tmp_path, began, state, needed):
    sweep, other = SweepDir(tmp_path / "parents"), SweepDir(tmp_path / "children")
    parent, child = sweep.run("aaa"), other.run("bbb")
    checkpoint = parent.checkpoint("step", 3, 1)
    checkpoint.mkdir(parents=True)
    child.path.mkdir(parents=True)
    write_json(child.plan, {"parent": {"path": str(parent.path), "checkpoint": checkpoint.name}})
    write_json(parent.plan, {"run_id": "aaa"})
    if began:
        child.checkpoint("step", 3, 1).mkdir(parents=True)
    if state:
        child.write_status(state=state)
    assert list(states_of_children_to_come(sweep)) == ([checkpoint] if needed else [])
