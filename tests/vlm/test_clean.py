"""What ``launcher clean`` leaves of a run is all that using it takes."""

from __future__ import annotations

import json

import pytest

from launcher.__main__ import main as launcher
from launcher.submission.in_process import decide_here
from launcher.submission.reconcile import Rule
from sweeps.__main__ import main as sweeps
from vlm.__main__ import main as vlm


@pytest.mark.parametrize(
    ("at_end", "keep", "gone"),
    [("state", "--keep-best", 2), ("state", "--keep-last", 1), ("weights", "--keep-best", 0)],
)
def test_a_completed_run_is_used_compared_and_still_done(train, capsys, at_end, keep, gone):
    plan, _ = train("trainer.max_steps=4", "checkpoint.every_steps=2", f"checkpoint.at_end={at_end}")
    run, folder = str(plan.rundir.path), str(plan.rundir.path.parent)

    def printed(door, *words: str) -> str:
        capsys.readouterr()
        assert door(list(words)) == 0
        return capsys.readouterr().out

    def used() -> list[str]:
        evaluated = printed(vlm, "evaluate", run, "--limit", "3", "--json")
        return [evaluated, printed(vlm, "generate", run, "--val", "1"), printed(sweeps, "compare", folder)]

    before = used()
    went = json.loads(printed(launcher, "clean", folder, keep, "--yes", "--json"))
    assert [one["kind"] for one in went] == ["state"] * gone
    assert used() == before
    assert decide_here(plan, Rule()).action == "skip" and plan.rundir.state() == "COMPLETED"
