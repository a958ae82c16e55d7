"""Trackers as they are asked for on the command line: what is merged, what is refused, before anything is planned."""

from __future__ import annotations

import pytest

from launcher import tracking
from launcher.plan import make_plan, read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Plan
from tests.conftest import SMALL

ALL = "tracker=[tensorboard,mlflow,wandb]"


def plan_of(values, tmp_path) -> Plan:
    return make_plan(values, default_name="t", cwd=tmp_path)


def test_trackers_are_merged_and_each_keeps_the_ledger(values, tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    tracker = plan_of(values(*SMALL, ALL), tmp_path).settings().tracker
    assert tracker.csv and tracker.tensorboard and tracker.mlflow and tracker.wandb and tracker.curves
    assert (tracker.mlflow_uri, tracker.wandb_mode, tracker.wandb_project) == (None, "online", None)
    for name in ("mlflow", "wandb"):
        alone = plan_of(values(*SMALL, f"tracker={name}"), tmp_path).settings().tracker
        assert alone.csv and getattr(alone, name) and not alone.tensorboard


def test_none_of_it_changes_the_run(values, tmp_path):
    words = ("tracker.mlflow_experiment=mine", "tracker.mlflow_uri=http://h:1", "tracker.wandb_mode=offline")
    with_all = plan_of(values(*SMALL, ALL, *words), tmp_path)
    assert with_all.run_id == plan_of(values(*SMALL), tmp_path).run_id


def test_the_environment_says_where_to(values, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = plan_of(values(*SMALL, ALL), tmp_path).settings().tracker
    assert (tracker.mlflow_uri, tracker.wandb_mode) == ("http://lab:5000", "offline")


def test_a_file_is_one_below_the_folder_in_which_it_was_typed(values, tmp_path):
    plan = plan_of(values(*SMALL, "tracker=mlflow", "tracker.mlflow_uri=sqlite:///m.db"), tmp_path)
    assert plan.settings().tracker.mlflow_uri == f"sqlite:///{tmp_path}/m.db"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_told_with_its_extra_before_anything_is_planned(values, monkeypatch, name):
    monkeypatch.setattr(tracking, "_is_installed", lambda package: package != name)
    with pytest.raises(UserError) as refused:
        read_sections(values(*SMALL, f"tracker={name}"))
    assert f'pip install "seemore-launcher[{name}]"' in str(refused.value) and f"tracker.{name}" in str(refused.value)
    read_sections(values(*SMALL))
    read_sections(values(*SMALL, f"tracker={name}", "site.python=/another/python"))


@pytest.mark.parametrize(
    ("word", "said"),
    [("tracker.mlflow_uri=htp://x", "tracker: mlflow_uri='htp://x': unknown scheme"),
     ("tracker.mlflow_experiment=''", "mlflow_experiment='': should be a name"),
     ("tracker.wandb_mode=sometimes", "tracker.wandb_mode='sometimes': should be 'online', 'offline' or 'disabled'")],
)  # fmt: skip
def test_what_can_be_told_from_the_text_is_refused(values, word, said):
    with pytest.raises(UserError) as refused:
        read_sections(values(*SMALL, ALL, word))
    assert said in str(refused.value)
