"""Trackers before anything is planned: whether what they need is installed, and where their stores are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from launcher.runtime.errors import UserError
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.tracking_uri import absolute_uri

_EXTRAS = ("mlflow", "wandb")
"""Trackers that are not among the dependencies; package and extra have the tracker's name."""


def require_installed(chosen: TrackerSettings) -> None:
    """See that the packages of the ``chosen`` trackers are there; none is imported.

    Raises:
        UserError: one is missing; names the extra.
    """
    for name in _EXTRAS:
        if getattr(chosen, name) and not _is_installed(name):
            raise UserError(
                f'tracker.{name}=true: the package {name} is not installed: pip install "seemore-launcher[{name}]", '
                "or choose another tracker"
            )


def settled(chosen: TrackerSettings, absolute: Callable[[str], str]) -> TrackerSettings:
    """``chosen`` as a job in another folder reads it.

    Args:
        absolute: makes a path absolute against the folder in which the command was typed.
    """
    return dataclasses.replace(chosen, mlflow_uri=absolute_uri(chosen.mlflow_uri, absolute))


@cache
def _is_installed(name: str) -> bool:
    return find_spec(name) is not None
