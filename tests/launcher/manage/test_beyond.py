"""``launcher resume RUN KEY=VALUE``: a child that is planned once, the run itself by other means, or a refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from tests.launcher.manage.test_again import SLURM, Home, error_of, only
from tests.launcher.runtime.saving import flip, make_saver, save

STEP = 3
HOOK = """
    def continued_from(self, parent, step):
        if self.optim["lr"] == 13:
            raise UserError("optim.lr=13: brings bad luck")
        return [f"optim.lr {parent.optim['lr']} -> {self.optim['lr']} from step {step} on"]
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user whose only run was preempted after ``STEP`` steps, all saved."""
    home = Home(tmp_path)
    task = home.path / "toytask.py"
    task.write_text(task.read_text().replace("\n\ndef train(", f"{HOOK}\n\ndef train("))
    home.run(*SLURM)
    run = only(home.sweep)
    home.ended("PREEMPTED")
    saver = make_saver(home.sweep.run(run).path, run_id=run)
    for step in (STEP - 1, STEP):
        save(saver, step)
    return home


def parent_of(home: Home) -> RunDir:
    """The first run."""
    return home.sweep.run(next(iter(home.sweep.read_members())))


def test_a_child_is_planned_once_beside_its_parent_and_is_another_run_than_one_from_scratch(home):
    parent = parent_of(home)
    said = home.manage("resume", str(parent.path), "trainer.max_steps=9")
    (plan,) = home.plans()
    child = RunDir(Path(plan["root"]) / plan["name"] / plan["run_id"])
    assert f"child of {parent.path}, from its step {STEP}: {child.path}" in said.stderr
    assert f"optim.lr 0.001 -> 0.001 from step {STEP} on" in said.stderr
    checkpoint = parent.checkpoint("step", STEP, 1).name
    assert plan["parent"] == {
        "run_id": parent.path.name, "path": str(parent.path), "step": STEP, "checkpoint": checkpoint
    }  # fmt: skip
    assert plan["science"]["trainer"]["max_steps"] == 9 and child.path.parent == home.sweep.path
    again = home.manage("resume", str(parent.path), "trainer.max_steps=9")
    assert again.stdout == f"SUBMITTED already: {child.path} (job 101)\n" and home.slurm.submitted == [1, 1]
    rows = json.loads(home.manage("status", str(home.sweep.path), "--json").stdout)
    assert [row["parent"] for row in rows] == ["", parent.path.name]
    assert "parent" in home.manage("status", str(home.sweep.path)).stdout.splitlines()[0]
    home.run(*SLURM, "trainer.max_steps=9")
    assert home.plans()[0]["run_id"] != child.path.name and "parent" not in home.plans()[0]


def test_a_child_that_stopped_is_resumed_and_retried_as_itself(home):
    home.manage("resume", str(parent_of(home).path), "trainer.max_steps=9")
    (first,) = home.plans()
    for words in (
        ["resume", first["run_id"]],
        ["retry", str(home.sweep.run(first["run_id"]).path)],
        ["resume", parent_of(home).path.name, "trainer.max_steps=9"],
    ):
        home.ended("FAILED", first["run_id"])
        home.manage(*words, cwd=home.path)
        (plan,) = home.plans()
        assert (plan["run_id"], plan["parent"]) == (first["run_id"], first["parent"])
    assert len(home.sweep.list_runs()) == 2 and home.slurm.submitted == [1, 1, 1, 1, 1]


def test_a_child_that_never_saved_begins_from_what_its_parent_has_now_and_one_that_did_from_where_it_began(home):
    parent = parent_of(home)
    home.manage("resume", str(parent.path), "trainer.max_steps=9")
    (plan,) = home.plans()
    child = home.sweep.run(plan["run_id"])
    for saved, begins in ((None, STEP + 1), (STEP + 2, STEP + 1)):
        home.ended("FAILED", plan["run_id"])
        if saved:
            save(make_saver(child.path, run_id=plan["run_id"]), saved)
        save(make_saver(parent.path, run_id=parent.path.name), STEP + (2 if saved else 1))
        home.manage("resume", str(parent.path), "trainer.max_steps=9")
        assert home.plans()[0]["parent"]["step"] == begins
        Plan.from_json(home.plans()[0]).rundir.plan.write_text(json.dumps(home.plans()[0]))  # as its job does


def test_the_child_of_a_child(home):
    home.manage("resume", str(parent_of(home).path), "trainer.max_steps=9")
    (child,) = home.plans()
    home.ended("PREEMPTED", child["run_id"])
    save(make_saver(home.sweep.run(child["run_id"]).path, run_id=child["run_id"]), 7)
    home.manage("resume", child["run_id"], "trainer.max_steps=20", "launch.name=longer", cwd=home.path)
    (file,) = (home.path / "runs" / "longer").glob("*/plan.json")
    plan = Plan.read(RunDir(file.parent))
    assert (plan.parent_id, plan.parent.step, plan.name) == (child["run_id"], 7, "longer")


def test_what_changes_nothing_that_is_learned_is_the_run_itself_by_other_means(home):
    run = parent_of(home)
    home.manage("resume", str(run.path), "hydra.launcher.nodes=2", "hydra.launcher.timeout_min=7")
    (plan,) = home.plans()
    assert plan["run_id"] == run.path.name and "parent" not in plan
    assert "--time=7" in Path(home.slurm.state["jobs"]["101"]["script"]).read_text()
    again = home.manage("resume", str(run.path), "hydra.launcher.nodes=3")
    assert again.stdout == f"SUBMITTED already: {run.path} (job 101)\n"


def test_overrides_that_cannot_be_followed(home):
    run = str(parent_of(home).path)
    for told, *words in (
        ("trainer.max_steps=1: changes nothing of run ", run, "trainer.max_steps=1"),
        ("unknown key 'trainer.max_stepss'; did you mean 'trainer.max_steps'?", run, "trainer.max_stepss=9"),
        ("trainer.max_steps=4,5", run, "trainer.max_steps=4,5"),
        ("task.target toytask:train -> toytask:Config: another task", run, "task.target=toytask:Config"),
        ("optim.lr=13: brings bad luck; nothing was started", run, "optim.lr=13"),
        ("trainer.max_steps=9: overrides go with exactly one run, and 2 are named", run, run, "trainer.max_steps=9"),
        ("trainer.max_steps=9: overrides go with exactly one run, and 0 are named", "trainer.max_steps=9"),
    ):
        assert told in error_of(home.manage("resume", *words, code=1))
    assert home.slurm.submitted == [1] and len(home.sweep.list_runs()) == 1


def test_a_run_without_a_state_to_begin_from(home):
    run = parent_of(home)
    resume = ("resume", str(run.path), "trainer.max_steps=9")
    newest, older = run.list_checkpoints("step")
    flip(newest / "model.safetensors")
    dry = home.manage(*resume, "launch.dry_run=true")
    assert f"from its step {STEP - 1}" in dry.stderr, "a damaged one is passed over, as an attempt would do"
    flip(older / "model.safetensors")
    assert "none of its 2 checkpoints can be used" in error_of(home.manage(*resume, code=1))
    shutil.rmtree(run.checkpoints)
    assert "is PREEMPTED and has saved no state yet" in error_of(home.manage(*resume, code=1))
    home.ended("COMPLETED")
    assert "kept no full state to begin from (checkpoint.at_end)" in error_of(home.manage(*resume, code=1))
    assert home.slurm.submitted == [1] and len(home.sweep.list_runs()) == 1


def test_a_run_that_goes_on_is_no_parent_yet(home):
    run = parent_of(home)
    home.manage("resume", str(run.path))
    refused = error_of(home.manage("resume", str(run.path), "trainer.max_steps=9", code=1))
    assert "is SUBMITTED, its newest state will be another; wait until it is done, or stop it first" in refused
    home.slurm.fault("squeue", "fail", times=9)
    assert "nothing was started" in error_of(home.manage("resume", str(run.path), "trainer.max_steps=9", code=1))
    assert home.slurm.submitted == [1, 1]
