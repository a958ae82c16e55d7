"""A recipe makes the very plan that composing would have made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.members import Composer, complete_members
from launcher.plan import make_queued_plan, recipe_of
from launcher.points import text_of
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Plan
from launcher.runtime.recipe import Recipe

BASE = ("model=tiny", "data=shapes", "data.count=100", "launch.name=s", "hydra/launcher=submitit_local")
CWD = Path("/somewhere")
KEYS = {
    "optim.lr": st.floats(1e-6, 1.0, allow_nan=False),
    "trainer.batch_size": st.integers(1, 100),
    "trainer.seed": st.integers(0, 2**31),
    "model.n_embd": st.sampled_from([32, 64, 96]),
    "data.count": st.integers(100, 200),  # the digest of the data follows from it
    "data.workers": st.integers(0, 4),  # execution
    "checkpoint.every_steps": st.one_of(st.none(), st.integers(1, 50)),  # what the session obeys
    "schedule.kind": st.sampled_from(["cosine", "constant"]),
}


@pytest.fixture(scope="module")
def composer() -> Composer:
    GlobalHydra.instance().clear()
    from hydra_plugins.seemore._queues import register

    register()
    with initialize_config_module("conf", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return Composer(hydra.config_loader, hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN))


def composed(composer: Composer, *words: str) -> tuple[Plan, dict[str, Any]]:
    (member,) = complete_members([[*BASE, *words]], [], composer)
    plan, _ = make_queued_plan(
        member.values, member.queue, default_name="s", cwd=CWD, code="c0de", here=True, overrides=member.words
    )
    return plan, member.values


def recipe(composer: Composer) -> Recipe:
    plan, values = composed(composer)
    return Recipe.from_json(recipe_of(plan, values, here=True).to_json())


@settings(max_examples=40, deadline=None)
@given(changes=st.fixed_dictionaries({}, optional=KEYS))
def test_the_plan_is_the_one_that_composing_would_make(composer: Composer, changes: dict[str, Any]):
    words = [f"{key}={text_of(value)}" for key, value in changes.items()]
    made, wanted = recipe(composer).plan_with(changes, words), composed(composer, *words)[0]
    assert replace(made, created="", overrides=()) == replace(wanted, created="", overrides=())
    again = composed(composer, *made.overrides[len(BASE) :])[0]
    assert again.run_id == made.run_id, "what it remembers composes it again"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim.lrr": 1.0}, "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ({"optim": 1.0}, "unknown key 'optim'"),
        ({"launch.name": "x"}, "unknown key 'launch.name'"),
        ({"optim.lr": "much"}, "optim.lr='much': should be a valid number"),
        ({"model.n_embd": 33}, "n_embd=33 is not divisible by n_head=4"),
        ({"checkpoint.keep_last": 1}, "checkpoint.keep_last=1: should be greater than or equal to 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(composer: Composer, changes: dict[str, Any], said: str):
    with pytest.raises(UserError) as refused:
        recipe(composer).plan_with(changes)
    assert said in str(refused.value)
