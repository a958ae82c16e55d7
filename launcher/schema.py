"""The sections of the config that launching is about. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from launcher.runtime.sections import NotNegative, Positive, Section


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """What is trained: both are resolved late, so that launching knows no task."""

    target: str
    """``package.module:function``, called with the session."""
    schema: str
    """``package.module:Dataclass`` of the task's part of the config."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig(Section):
    """What one run is given."""

    device: Literal["auto", "cpu", "cuda"]
    """auto: a GPU where the planning machine has one."""
    nodes: Positive
    tasks_per_node: Positive
    """Ranks on a node."""
    gpus_per_node: NotNegative | None
    cpus_per_task: Positive | None
    mem_gb: Positive | None
    """Memory of a node."""
    time_min: Positive | None
    """Longest time, minutes."""
    micro_batch: Positive | None
    """Most samples of one forward pass on a rank; the rest of the global batch is accumulated. null: no limit."""


@dataclass(frozen=True, kw_only=True)
class SiteConfig(Section):
    """What one cluster is like. Stronger than ``hardware``, weaker than ``hydra.launcher.*``."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    slurm_conf: str | None = None
    """``SLURM_CONF`` of the cluster, where the environment does not say; ``~`` is a home directory."""
    setup: list[str] = dataclasses.field(default_factory=list)
    """Lines of shell that a batch script runs first: ``module load …``."""
    python: str | None = None
    """Python interpreter of jobs; null: that of the command."""
    interface: str | None = None
    """Network interface of NCCL and gloo, e.g. ``ib0``; null: found out."""
    bf16: bool = True
    """Whether the GPUs multiply bf16 in hardware (since NVIDIA's Ampere): the machine that submits may have none."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(Section):
    """Where a run goes, under which name, and how it is launched."""

    name: str | None
    """The sweep. null: ``<experiment or model>-<data>``, for a sweep with a hash of the names of what varies."""
    root: str
    """Folder of all sweeps; relative to the folder in which the command was typed."""
    wait: bool = False
    """Wait for submitted runs, and tell what became of them."""
    dry_run: bool = False
    """Show what would be submitted, ask Slurm whether it would take it, and change nothing."""
    parallel: Positive | None = None
    """``hydra/launcher=submitit_local``: most runs at a time. null: one for each set of GPUs, or as the cores allow."""
    pack: Positive | None = None
    """Members a job: it claims them one after the other from a queue that all jobs share, and torch is imported once.
    null: a job for each member."""
    beside: Positive = 1
    """With ``pack``: members at a time in a job, sharing its cores and GPUs."""

    retry: Literal["never", "failed", "stale"] = "never"
    """Which runs that have ended the same command runs again. never: none. failed: those that FAILED, from their last
    checkpoints. stale: those that ended and were made by other code than today's, from the start; what they left is
    kept in ``<sweep>/replaced``. A single run that is named without ``-m`` is run again where it FAILED."""

    continue_: Annotated[Literal["auto", "requeue", "chain"], Field(alias="continue")] = "auto"
    """``launch.continue``: how a run goes on on Slurm whose job was preempted, ran out of time or broke down. requeue:
    its job goes back into the queue. chain: successors that were submitted with it go on, one where the other ends;
    for clusters that forbid requeues. auto: chain where the cluster says that it does not requeue, else requeue."""
    chain: Positive | None = None
    """Successors of each submission where runs go on by a chain. null: 3."""

    def __post_init__(self) -> None:
        if self.continue_ == "requeue" and self.chain is not None:
            raise ValueError(f"chain={self.chain} is for launch.continue=chain or auto, not for requeue: leave it out")
        if self.beside > 1 and self.pack is None:
            raise ValueError(f"beside={self.beside} is for packed members: set launch.pack too")
        if self.name is not None and (not self.name or self.name.startswith(".") or "/" in self.name):
            raise ValueError(f"name={self.name!r} should be one folder name: not empty, no slash, no leading dot")
