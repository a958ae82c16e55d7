"""What ``launcher clean`` leaves of a run is all that using it takes."""

from __future__ import annotations

import json

from launcher.__main__ import main as launcher
from launcher.submission.in_process import decide_here
from launcher.submission.reconcile import Rule
from sweeps.__main__ import main as sweeps
from vlm.__main__ import main as vlm


def test_a_completed_run_is_used_compared_and_still_done(train, capsys):
    plan, _ = train("trainer.max_steps=4", "checkpoint.every_steps=2", "checkpoint.at_end=state")
    run, folder = str(plan.rundir.path), str(plan.rundir.path.parent)

    def printed(door, *words: str) -> str:
        capsys.readouterr()
        assert door(list(words)) == 0
        return capsys.readouterr().out

    def used() -> list[str]:
        evaluated = printed(vlm, "evaluate", run, "--limit", "3", "--json")
        return [evaluated, printed(vlm, "generate", run, "--val", "1"), printed(sweeps, "compare", folder)]

    before = used()
    for keep in ("--keep-last", "--keep-best"):  # of two states the older one, then the other
        (went,) = json.loads(printed(launcher, "clean", folder, keep, "--yes", "--json"))
        assert went["kind"] == "state" and went["removed"]
    assert used() == before
    assert decide_here(plan, Rule()).action == "skip" and plan.rundir.state() == "COMPLETED"
