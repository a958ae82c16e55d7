"""Which Python and which packages run this process, and how they differ from those that a plan was made with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from typing import Any


def python_and_packages() -> dict[str, Any]:
    """JSON values: ``python``, ``platform`` and ``packages`` (name to version). No environment variables."""
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": _packages()}


def drift(planned: Mapping[str, Any]) -> list[str]:
    """What is another here than where the plan was made, e.g. ``torch 2.13.0 -> 2.14.0``; empty where all is equal.

    Args:
        planned: the plan's ``environment``; what it does not say is not compared.
    """
    here = python_and_packages()
    changes = []
    if planned.get("python") not in (None, here["python"]):
        changes.append(f"python {planned['python']} -> {here['python']}")
    before: Mapping[str, str] | None = planned.get("packages")
    if before is None:
        return changes
    now: dict[str, str] = here["packages"]
    for name in sorted({*before, *now}, key=str.lower):
        old, new = before.get(name), now.get(name)
        if old is None:
            changes.append(f"{name} {new} is new")
        elif new is None:
            changes.append(f"{name} {old} is gone")
        elif old != new:
            changes.append(f"{name} {old} -> {new}")
    return changes


@cache
def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for one in distributions():  # in the order of sys.path: the first of a name is the one that is imported
        name = one.metadata["Name"]
        if name:  # a half-removed package has none
            found.setdefault(name, one.version)
    return dict(sorted(found.items()))
