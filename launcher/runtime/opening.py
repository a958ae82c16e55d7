"""What is said of a run before its first step: one line, and on a terminal its whole config as a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from launcher.runtime.plan import Plan
from launcher.runtime.redaction import redacted
from launcher.runtime.sections import flat
from launcher.runtime.world import World


def whole_config(plan: Plan) -> dict[str, Any]:
    """The resolved config as ``config.yaml`` has it: both halves of the task's and all other sections, no secrets."""
    config: dict[str, Any] = redacted(
        plan.config_values() | {name: section for name, section in plan.execution.items() if name != "task"}
    )
    return config


def opening_line(plan: Plan, world: World, steps: int | None) -> str:
    """Which run it is, how long (None: not known), on what and where: ``run 1537f0c89da1: 1500 steps on cpu, in …``."""
    length = "" if steps is None else f"{steps} steps "
    ranks = "" if world.size == 1 else f", rank {world.rank} of {world.size} on {world.node}"
    return f"run {plan.run_id}: {length}on {world.device}{ranks}, in {plan.rundir.path}"


def show_config(console: Console, plan: Plan) -> None:
    """Draw the config where ``console`` is a terminal; elsewhere it stands in ``config.yaml`` alone."""
    if console.is_interactive:
        console.print(config_tree(f"config of {plan.run_id}", whole_config(plan)))


def config_tree(title: str, config: Mapping[str, Any]) -> Tree:
    """A branch for each section, its values as they would be typed: ``optim  kind=adamw lr=0.002 …``."""
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    for name, section in config.items():
        if isinstance(section, Mapping):
            tree.add(_line(Text(name, style="bold cyan"), flat(section)))
        else:
            tree.add(_line(Text(), {name: section}))
    return tree


def _line(head: Text, values: Mapping[str, Any]) -> Text:
    for key, value in values.items():
        head.append(" " if head else "")
        head.append(f"{key}=", style="dim").append(_typed(value))
    return head


def _typed(value: Any) -> str:
    """``value`` as Hydra would read it, without anything that steers a terminal or breaks a line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_typed(item) for item in value)}]"
    if isinstance(value, str):
        return value if value and value.isprintable() else repr(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
