"""Plans: JSON and back, where a run stands, and names that are resolved late."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from launcher.runtime.errors import UserError
from launcher.runtime.files import write_json
from launcher.runtime.plan import Parent, Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import Section, execution, halves
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.task_config import resolve_name

CHECKPOINT = {"every_steps": None, "keep_last": 2, "keep_every": None, "at_end": None, "best": True}


@dataclass(frozen=True, kw_only=True)
class Optim(Section):
    lr: float
    fused: bool = execution(False)


@dataclass(frozen=True, kw_only=True)
class Toy(Section):
    optim: Optim
    steps: int
    threads: int = execution(1)


TOY = Toy(optim=Optim(lr=0.1, fused=True), steps=3, threads=2)


@pytest.fixture
def plan(tmp_path):
    science, other = halves(TOY)
    hardware = {"device": "cpu", "micro_batch": None}
    return Plan(
        run_id="0123456789ab",
        name="sweep",
        root=str(tmp_path),
        target=f"{__name__}:resolve_name",
        schema=f"{__name__}:Toy",
        science=science,
        execution={"task": other, "checkpoint": CHECKPOINT, "tracker": {"csv": True}, "hardware": hardware},
        environment={"python": "3"},
        created="2024-01-01T00:00:00+00:00",
    )


def test_a_plan_is_the_same_after_json(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_plan_of_a_child_says_from_whose_state_it_begins_and_an_older_plan_from_none(plan):
    parent = Parent(
        run_id="ba9876543210", path="/runs/sweep/ba9876543210", step=7, checkpoint="step-000000000007.a0001"
    )
    child = replace(plan, parent=parent)
    assert Plan.from_json(json.loads(json.dumps(child.to_json()))) == child
    assert "parent" not in plan.to_json(), "a version that knows no children reads it"
    assert child.parent_id == "ba9876543210" and parent.state.parts[-2:] == ("checkpoints", "step-000000000007.a0001")
    assert (
        not child.same_science(plan) and not plan.same_science(child) and child.same_science(replace(child, code="x"))
    )
    plan.rundir.path.mkdir(parents=True)
    write_json(plan.rundir.plan, plan.to_json() | {"parent": {"run_id": "ba9876543210"}})
    with pytest.raises(UserError, match="is damaged, or another version's"):
        Plan.read(plan.rundir)


def test_a_run_stands_under_root_sweep_and_id(plan, tmp_path):
    assert plan.rundir.path == tmp_path / "sweep" / "0123456789ab"


def test_both_halves_make_the_config_again(plan):
    assert plan.config_values() == {"optim": {"lr": 0.1, "fused": True}, "steps": 3, "threads": 2}
    assert plan.config() == TOY


def test_the_settings_are_those_of_the_session_only(plan):
    settings = plan.settings()
    assert settings.checkpoint.keep_last == 2
    assert settings.tracker == TrackerSettings(csv=True)
    assert plan.hardware == {"device": "cpu", "micro_batch": None}


def test_a_plan_is_read_from_its_run_directory(plan):
    plan.rundir.path.mkdir(parents=True)
    write_json(plan.rundir.plan, plan.to_json())
    assert Plan.read(plan.rundir) == plan


def test_a_folder_without_a_plan_is_told_to_be_no_run_directory(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: no run directory (it has no plan.json)")):
        Plan.read(RunDir(tmp_path))


def test_a_name_is_resolved_to_the_object_that_it_names():
    assert resolve_name("launcher.runtime.rundir:RunDir") is RunDir
    assert resolve_name("pathlib:Path") is Path


@pytest.mark.parametrize("name", ["", "train", "a.b.train", ":train", "a.b:", ".b:train", "a b:c", "a:b:c"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UserError, match="^" + re.escape(f"{name!r}: should be package.module:name") + "$"):
        resolve_name(name)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("no_such_package.task:train", "no_such_package"), ("launcher.none:train", "launcher.none")],
)
def test_a_module_that_is_not_there_is_told(name, missing):
    with pytest.raises(UserError, match=f"there is no module {missing}$"):
        resolve_name(name)


def test_an_attribute_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"module launcher\.runtime\.task_config has no trian$"):
        resolve_name("launcher.runtime.task_config:trian")


@pytest.mark.parametrize(
    ("body", "error"), [("import no_such_package", ModuleNotFoundError), ("import os; os.no_such_name", AttributeError)]
)
def test_a_module_that_fails_to_import_shows_its_own_error(tmp_path, monkeypatch, body, error):
    (tmp_path / "broken_task.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_task", raising=False)
    with pytest.raises(error, match="no_such"):
        resolve_name("broken_task:train")
