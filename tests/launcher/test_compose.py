"""Hydra's errors in one line."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from launcher.compose import COMPOSITION_ERRORS, plain, told
from launcher.runtime.errors import UserError


def error_of(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"), pytest.raises(COMPOSITION_ERRORS) as caught:
        compose("config", list(overrides))
    return told(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["unknown key 'optim.lrr'", "did you mean 'optim.lr'"]),
        ("precison=bf16", ["unknown key 'precison'", "did you mean 'precision'"]),
        ("~trainer.sed", ["unknown key 'trainer.sed'", "did you mean 'trainer.seed'"]),
        ("data.path=x.csv", ["unknown key 'data.path'", "data=csv has it"]),
        ("data.paths=x.csv", ["unknown key 'data.paths'", "did you mean 'data.path'"]),
        ("model=tyny", ["model=tyny", "did you mean 'tiny'", "seemore, small, tiny"]),
        ("optim.lr=[1", ["optim.lr=[1", "cannot be read as key=value"]),
        ("+optim.lr=1", ["optim.lr", "already"]),
    ],
)
def test_one_line_names_the_key_and_what_is_near(override, words):
    line = error_of(override)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_an_interpolation_that_leads_nowhere_is_the_users():
    with initialize_config_module("conf", version_base="1.3"), pytest.raises(UserError, match="nowhere"):
        plain(compose("config", ["data.cache_dir=${nowhere}"]))
