"""What is said of a run before its first step."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launcher.runtime.opening import config_tree, opening_line, show_config, whole_config
from launcher.runtime.world import World


def drawn(config, **console):
    file = io.StringIO()
    Console(file=file, width=60, **console).print(config_tree("config of it", config))
    return file.getvalue()


def test_one_line_says_which_run_how_long_on_what_and_where(make_plan):
    plan = make_plan()
    assert opening_line(plan, World(), 6) == f"run {plan.run_id}: 6 steps on cpu, in {plan.rundir.path}"
    ranked = World(rank=1, size=4, device="cuda:1", host="n2")
    assert opening_line(plan, ranked, None) == f"run {plan.run_id}: on cuda:1, rank 1 of 4 on n2, in {plan.rundir.path}"


def test_the_tree_has_every_value_of_the_whole_config_but_secrets(make_plan):
    plan = make_plan()
    text = drawn(whole_config(plan))
    for words in ("steps=6", "lr=0.01", "hub_token=<redacted>", "keep_last=2", "every_steps=null", "csv=true"):
        assert words in text
    assert "hf-secret" not in text and text.startswith("config of it\n")


def test_a_section_is_a_branch_and_what_stands_in_it_keeps_its_dots():
    text = drawn({"optim": {"lr": 1e-3, "betas": [0.9, 0.99], "more": {"eps": 1e-8}}, "name": "x"})
    assert text.splitlines()[1:] == ["├── optim lr=0.001 betas=[0.9,0.99] more.eps=1e-08", "└── name=x"]


def test_a_long_section_goes_on_within_its_branch():
    lines = drawn({"a": {f"key_{i}": i for i in range(20)}, "b": {"x": 1}}).splitlines()
    assert len(lines) > 4 and all(line.startswith("│") for line in lines[2:-1]) and max(map(len, lines)) <= 60


@pytest.mark.parametrize("value", ["\x1b[31mred", "two\nlines", "\x9b2J", "\udc80", "", "[bold]x[/bold]"])
def test_no_value_steers_the_terminal(value):
    text = drawn({"a": {"b": value, "c": [value]}}, force_terminal=True, color_system=None)
    assert "\x9b" not in text and "\x1b[31m" not in text and len(text.splitlines()) == 2
    assert text.splitlines()[1].count(value if value.isprintable() and value else repr(value)) == 2


def test_without_a_terminal_nothing_is_drawn(make_plan):
    file = io.StringIO()
    show_config(Console(file=file, force_terminal=False), make_plan())
    assert file.getvalue() == ""
