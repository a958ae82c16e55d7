"""The sections of the config that launching is about. No torch."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from launcher.runtime.redaction import NAMES
from launcher.runtime.sections import NotNegative, Positive, Section

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Name of an environment variable that a shell can export."""
_GPU_TYPE = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9_.-]*")
_SCRATCH = re.compile(r"(?:[^$`\"\\!]|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\})*")
"""Text that a shell between double quotes only puts variables into."""
_OF_SLURM = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """What is trained: both are resolved late, so that launching knows no task."""

    target: str
    """``package.module:function``, called with the session."""
    schema: str | None = None
    """``package.module:Dataclass`` of the task's part of the config; null: it is taken as it was composed."""
    argv: list[str | int | float | bool] | None = None
    """``task=command``: the program and its arguments; ``${lr}`` alone keeps the type that it has."""
    execution: list[str] = dataclasses.field(default_factory=list)
    """Without a schema: dotted keys that do not change what is learned; they stay out of a run's id."""
    paths: list[str] = dataclasses.field(default_factory=list)
    """Without a schema: dotted keys that hold paths; relative ones are read against the folder of the command."""

    def of_free_config(self) -> dict[str, Any]:
        """What a config without a schema says of its task."""
        argv = {} if self.argv is None else {"argv": [_word(one) for one in self.argv]}
        return {"target": self.target, **argv, "execution": self.execution, "paths": self.paths}


def _word(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
class ContainerConfig(Section):
    """What jobs of Slurm run in; setup lines and srun itself stay outside."""

    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """The first two are called by name inside of srun; pyxis is srun's own plugin."""
    image: str | None = None
    """A file or folder (``~/images/torch.sif``), or what the runtime finds in a registry (``docker://org/image:tag``).
    null: no container."""
    mounts: list[str] = dataclasses.field(default_factory=list)
    """``source:target`` or ``source:target:ro``, absolute; ``~`` is a home directory. The runs, the code and the folder
    in which the command was typed are mounted anyway."""
    args: list[str] = dataclasses.field(default_factory=list)
    """More options of ``apptainer exec``, or of srun where pyxis is the runtime; a word each."""

    def __post_init__(self) -> None:
        for mount in self.mounts:
            source, _, rest = mount.partition(":")
            target, _, how = rest.partition(":")
            fine = source.startswith(("/", "~")) and target.startswith("/") and how in ("", "ro", "rw")
            if not fine or mount.endswith(":") or "," in mount or not mount.isprintable():
                raise ValueError(f"mounts: {mount!r} should be source:target or source:target:ro, both absolute")
        for word in self.args:
            if not word.isprintable():
                raise ValueError(f"args: {word!r} holds characters that cannot be printed")
            if word.partition("=")[0] in ("-e", "--cleanenv", "-C", "--containall"):
                raise ValueError(f"args: {word} hides the environment, by which a rank is told who it is; leave it out")


@dataclass(frozen=True, kw_only=True)
class SiteConfig(Section):
    """What one cluster is like. Stronger than ``hardware``, weaker than ``hydra.launcher.*``."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    gpu_type: str | None = None
    """What Slurm calls the GPUs (``sinfo --Format=gres``): ``a100`` makes ``gpus_per_node=4`` of a job ``a100:4``."""
    slurm_conf: str | None = None
    """``SLURM_CONF`` of the cluster, where the environment does not say; ``~`` is a home directory."""
    setup: list[str] = dataclasses.field(default_factory=list)
    """Lines of shell that a batch script runs first: ``module load …``."""
    env: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Environment variables of jobs and of their setup lines; texts and numbers. They stand in batch scripts."""
    secrets: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    """Environment variables of jobs that stand in no file of ours; ``${oc.env:WANDB_API_KEY}`` takes one of yours."""
    scratch: str | None = None
    """Folder on each node's own disk, with environment variables of the node: ``/scratch/$USER``. It is made where it
    is not there, and told to jobs as ``LAUNCHER_SCRATCH``."""
    python: str | None = None
    """Python interpreter of jobs; null: that of the command, and in a container its ``python``."""
    container: ContainerConfig = dataclasses.field(default_factory=ContainerConfig)
    interface: str | None = None
    """Network interface of NCCL and gloo, e.g. ``ib0``; null: found out."""
    bf16: bool = True
    """Whether the GPUs multiply bf16 in hardware (since NVIDIA's Ampere): the machine that submits may have none."""

    def __post_init__(self) -> None:
        _check_names("env", self.env)
        _check_names("secrets", self.secrets)
        for name, value in self.env.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError(f"env.{name}={value!r}: should be a text or a number")
            if not str(value).isprintable():
                raise ValueError(f"env.{name}={value!r}: holds characters that cannot be printed")
        for name, value in self.secrets.items():  # of which nothing is shown
            if value is not None and (not isinstance(value, str) or "\0" in value):
                raise ValueError(f"secrets.{name}: should be a text; put quotes around it")
        if both := sorted(self.env.keys() & self.secrets.keys()):
            raise ValueError(f"{both[0]} stands in env and in secrets: in one of them, please")
        if self.gpu_type is not None and not _GPU_TYPE.fullmatch(self.gpu_type):
            raise ValueError(f"gpu_type={self.gpu_type!r}: should be one word of sinfo --Format=gres, without a number")
        if self.scratch is not None:
            fine = self.scratch.startswith(("/", "$")) and self.scratch.isprintable()
            if not fine or not _SCRATCH.fullmatch(self.scratch):
                raise ValueError(f"scratch={self.scratch!r}: should be an absolute folder; $NAME may stand in it")

    @property
    def known_secrets(self) -> dict[str, str]:
        """``secrets`` without those that are null: not set here, and not needed."""
        return {name: value for name, value in self.secrets.items() if value is not None}


def _check_names(field: str, variables: dict[str, Any]) -> None:
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{field}: {name!r} is no name of an environment variable (allowed: letters, digits, _)")
        if name.startswith(_OF_SLURM) or name in (NAMES, "PYTHONPATH"):
            raise ValueError(f"{field}.{name}: is Slurm's or the launcher's own to set; leave it out")


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
