"""Configs of ``hydra/launcher``; under a name that Hydra's scan passes over, as it cannot load dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf


@dataclass
class SlurmQueue(SlurmQueueConf):
    """Every key of hydra-submitit-launcher; null: as ``hardware`` and ``site`` say."""

    _target_: str = "hydra_plugins.seemore.SlurmLauncher"
    submitit_folder: str | None = None
    timeout_min: int | None = None
    tasks_per_node: int | None = None
    nodes: int | None = None
    name: str | None = None
    max_num_timeout: int | None = None
    """How often a run that is out of time goes back into the queue; null: as often as it takes (``requeue``)."""


@dataclass
class LocalQueue(LocalQueueConf):
    """The same for processes on this machine."""

    _target_: str = "hydra_plugins.seemore.LocalLauncher"
    submitit_folder: str | None = None
    timeout_min: int | None = None
    tasks_per_node: int | None = None
    nodes: int | None = None
    name: str | None = None


def register() -> None:
    """Take over the names of hydra-submitit-launcher's options; after Hydra's scan, which would put them back."""
    Plugins.instance()
    for name, node in (("submitit_slurm", SlurmQueue), ("submitit_local", LocalQueue)):
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="seemore")
