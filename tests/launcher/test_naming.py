"""Default names of sweeps."""

from __future__ import annotations

from launcher.naming import default_name

CHOICES = {"model": "tiny", "data": "shapes", "experiment": None}


def test_a_single_run_is_named_by_what_it_trains():
    assert default_name(CHOICES) == "tiny-shapes"
    assert default_name(CHOICES | {"experiment": "demo"}) == "demo-shapes"


def test_a_sweep_is_named_by_the_names_that_vary_whatever_their_order():
    assert default_name(CHOICES, ["a", "b"]) == default_name(CHOICES, ["b", "a"]) != default_name(CHOICES, ["a"])


def test_a_group_that_varies_does_not_put_its_value_into_the_name():
    names = {default_name(CHOICES | {"model": model}, ["model"]) for model in ("tiny", "small")}
    assert len(names) == 1 and names.pop().startswith("model-shapes-")
