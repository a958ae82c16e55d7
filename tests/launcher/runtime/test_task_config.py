"""The config of a task without a schema: two halves that join again, paths, and ids that tell functions apart."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.identity import run_id
from launcher.runtime.sections import Section, merged
from launcher.runtime.task_config import Facts, FreeConfig, identity, read_config, split

FACTS = Facts(cwd=Path("/here"), device="cpu", bf16=False)
NAMES = st.text("abc", min_size=1, max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
TREES = st.dictionaries(NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3)))


def task(**said: object) -> dict[str, object]:
    return {"target": "mine:train", "execution": [], "paths": [], **said}


def free(values: dict[str, object], **said: object) -> FreeConfig:
    return FreeConfig({"task": task(**said), **values})


@given(TREES, st.data())
def test_the_halves_join_again_and_what_is_listed_is_no_part_of_the_id(values, data):
    listed = data.draw(st.lists(st.sampled_from(sorted(values)), unique=True)) if values else []
    config = free(values, execution=listed)
    science, execution = split(config)
    assert merged(science, execution) == config.plain()
    changed = free({name: "other" if name in listed else value for name, value in values.items()}, execution=listed)
    assert identity(changed, "mine:train") == identity(config, "mine:train")


@given(TREES)
def test_values_are_read_as_attributes_and_as_items(values):
    config = free(values)
    for name, value in values.items():
        plain = config[name].plain() if isinstance(value, dict) else config[name]
        assert plain == value
    assert copy.deepcopy(config).plain() == pickle.loads(pickle.dumps(config)).plain() == config.plain()


def test_a_nested_key_may_be_execution():
    science, execution = split(free({"log": {"every": 5, "what": "loss"}}, execution=["log.every"]))
    assert science["log"] == {"what": "loss"} and execution["log"] == {"every": 5}


def test_a_key_that_is_not_there_is_told_with_the_nearest():
    with pytest.raises(AttributeError, match="no key 'stesp'; did you mean 'steps'"):
        assert free({"steps": 3}).stesp


def test_paths_are_read_against_the_folder_of_the_command():
    config = free({"data": {"path": "a.csv", "other": None}}, paths=["data.path", "data.other"]).resolve(FACTS)
    assert config.data.path == "/here/a.csv" and config.data.other is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"execution": ["log_evry"]}, "task.execution: the config has no key 'log_evry'; did you mean 'log_every'?"),
        ({"paths": ["data.pth"]}, "task.paths: the config has no key 'data.pth'; did you mean 'data.path'?"),
        ({"paths": ["log_every"]}, "task.paths: log_every=5 should be a path"),
        ({"execution": ["task.target"]}, "task.execution: the config has no key 'task.target'"),
    ],
)
def test_lists_that_name_no_key_are_refused(said, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        free({"log_every": 5, "data": {"path": "x"}}, **said).resolve(FACTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": {1: 64}}, "widths.1: is no text"),
        ({"clip": float("inf")}, "clip=inf: is no number that JSON has"),
        ({"clips": [[float("nan")]]}, "clips=nan: is no number that JSON has"),
    ],
)
def test_what_a_plan_could_not_hold_is_refused(values, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        free(values).resolve(FACTS)


def test_a_key_that_is_listed_twice_or_with_its_section_is_taken_once():
    config = free({"a": {"b": 1, "c": 2}}, execution=["a.b", "a", "a"])
    science, execution = split(config)
    assert "a" not in science and execution["a"] == {"b": 1, "c": 2}


def test_another_function_or_program_is_another_run():
    ids = {run_id(identity(FreeConfig({"task": said, "steps": 3}), "x")) for said in (
        task(), task(target="mine:other"), task(argv=["python", "a.py"]), task(argv=["python", "b.py"]),
    )}  # fmt: skip
    assert len(ids) == 4


@dataclass(frozen=True, kw_only=True)
class Own(Section):
    TARGET: ClassVar[str] = "mine:train"
    steps: int


@dataclass(frozen=True, kw_only=True)
class Shared(Section):
    steps: int


def test_of_a_schema_its_own_task_stays_out_of_the_id_and_another_one_does_not():
    assert identity(Own(steps=3), "mine:train") == {"steps": 3}
    assert identity(Own(steps=3), "mine:other") == {"steps": 3, "task": {"target": "mine:other"}}
    assert identity(Shared(steps=3), "mine:train")["task"] == {"target": "mine:train"}


def test_a_schema_must_be_a_dataclass():
    with pytest.raises(UserError, match=r"^task\.schema='pathlib:Path': should name a dataclass$"):
        read_config("pathlib:Path", {})
