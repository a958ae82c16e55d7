"""The sections of the config that the session itself obeys, whatever task it carries. All of them execution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from launcher.runtime.sections import NotNegative, Positive, Section
from launcher.runtime.tracking_uri import check_uri


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Section):
    """When the state is saved and how much of it is kept."""

    every_steps: Positive | None
    """Save the full state each so many steps; null: never on a cadence."""
    keep_last: Annotated[int, Field(ge=2)]
    """How many full states stay while training, at least 2; older ones go once a newer one is committed."""
    keep_every: Positive | None
    """Steps divisible by this stay for good; null: none does."""
    at_end: Literal["state", "weights", "nothing"] | None
    """What a finished run keeps besides its best weights: its last full state, or its last weights.
    null: state for a single run, weights for a member of a sweep."""
    best: bool
    """Keep the weights of the best validation."""
    restart_if_damaged: bool = False
    """Start over where no checkpoint of a run can be used any more, instead of refusing to."""


@dataclass(frozen=True, kw_only=True)
class RequeueSettings(Section):
    """When a job that was stopped or broke down is not run again by itself; counted over the starts of one job."""

    max_attempts: Positive = 1000
    """Most starts."""
    max_without_progress: Positive = 5
    """Most starts in a row that left no newer checkpoint."""
    max_timeouts: NotNegative | None = None
    """Most times that it is put back because its time limit was reached; null: as often as it takes.
    ``hydra.launcher.max_num_timeout`` is stronger."""
    max_excluded: NotNegative = 2
    """Most nodes that a run avoids: those that did not pass its preflight, or on which it broke down twice in a row.
    After that it is requeued as ever; 0: none."""


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings(Section):
    """When a rank counts as hung."""

    timeout_s: Annotated[float, Field(gt=0)] | None = 900
    """Longest time without a step, a validation batch or a piece of data, in seconds; null: never."""


@dataclass(frozen=True, kw_only=True)
class PreflightSettings(Section):
    """What a run with jobs of its own on Slurm tries on its nodes before the task is called, at each attempt."""

    enabled: bool = True
    """Write and sync a small file in the run directory, multiply matrices on each rank's device, add up numbers over
    all ranks. A node that fails is excluded (``requeue.max_excluded``), and the run requeued."""
    deadline_s: Annotated[float, Field(gt=0)] = 120
    """Longest time of each of these, in seconds: a rank that takes longer hangs. The last includes NCCL's start."""


@dataclass(frozen=True, kw_only=True)
class TrackerSettings(Section):
    """Where numbers go: any of these, or none. Chosen together: ``tracker=[tensorboard,mlflow]``."""

    csv: bool = False
    """metrics.csv, losses_log.csv and timing_logs.csv."""
    curves: bool = True
    """With csv: draw loss_curve.png and timing_curve.png at the end. Packed members leave it to
    ``python -m launcher curves``: a picture takes longer than a short run."""
    tensorboard: bool = False
    """Event files under ``tb/``."""
    mlflow: bool = False
    """A run of MLflow; the members of a sweep are its children of one parent run."""
    mlflow_uri: str | None = None
    """Where: a server (``http://HOST:PORT``) or a database (``sqlite:///FILE``); null: ``<launch.root>/mlflow.db``."""
    mlflow_experiment: str | None = None
    """null: the package of ``task.target``."""
    wandb: bool = False
    """A run of Weights & Biases, its id that of the run; the key comes from the environment or ``wandb login``."""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """offline: files in the run directory, sent by ``wandb sync`` later; so is a run whose server cannot be reached."""
    wandb_project: str | None = None
    """null: the package of ``task.target``."""
    wandb_entity: str | None = None
    """User or team; null: W&B's default of the user."""
    wandb_group: str | None = None
    """null: the sweep."""
    wait_s: Annotated[float, Field(ge=0)] = 30.0
    """Longest time, seconds, that the end of a run waits for TensorBoard, MLflow and W&B; a stop waits 5 at most."""

    def __post_init__(self) -> None:
        check_uri(self.mlflow_uri)
        for name in ("mlflow_experiment", "wandb_project", "wandb_group"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}='': should be a name, or null")


@dataclass(frozen=True, kw_only=True)
class ProfilerSettings(Section):
    """Which steps are recorded by torch.profiler, in how much detail, and by whom."""

    kind: Literal["off", "steps"] = "off"
    wait: NotNegative = 10
    """Steps that are let pass before each window, counted from where this start of the run begins."""
    warmup: NotNegative = 2
    """Steps before a window in which the profiler runs and keeps nothing: its own start distorts them."""
    active: Positive = 3
    """Steps of a window: one trace file each, ``traces/rank0.step000015.…``."""
    repeat: NotNegative = 1
    """Windows in each start of the run; 0: again and again to the end."""
    ranks: Annotated[list[NotNegative], Field(min_length=1)] = field(default_factory=lambda: [0])
    """Ranks that record; each writes files of its own."""
    shapes: bool = False
    """Record the shapes that operators are given."""
    stacks: bool = False
    """Record the Python stack of each operator; slow, and the trace becomes large."""
    flops: bool = False
    """Estimate the FLOPs of matrix products and convolutions."""
    memory: bool = False
    """Record each allocation; on a GPU also write a snapshot for pytorch.org/memory_viz."""

    def __post_init__(self) -> None:
        if len(set(self.ranks)) != len(self.ranks):
            raise ValueError(f"ranks={self.ranks} names a rank twice")


def _peak(said: Any) -> Any:
    is_number = isinstance(said, int | float) and not isinstance(said, bool)
    if said is None or said == "measure" or (is_number and 0 < said < math.inf):
        return said
    raise PydanticCustomError("peak", "a positive number of TFLOP/s, 'measure' or null")


@dataclass(frozen=True, kw_only=True)
class ThroughputSettings(Section):
    """What ``train/mfu``, the used share of the devices' peak, is a share of."""

    peak_tflops: Annotated[float | Literal["measure"] | None, PlainValidator(_peak)] = "measure"
    """TFLOP/s of one rank's device, its GPU or its threads of a CPU, in the run's precision: a number, as of a data
    sheet. measure: what products of square matrices reach there, in 0.1 s at each start of a run; packed members leave
    it out. null: no ``train/mfu``."""


@dataclass(frozen=True, kw_only=True)
class DrillSettings(Section):
    """A short copy of a run that is interrupted on purpose: ``python -m launcher drill`` says all of this."""

    stop_after: Positive | None = None
    """The run is COMPLETED after this step, whatever its task's config says; its schedules are those of the whole run.
    null: it is no drill."""
    hold_at: list[Positive] = field(default_factory=list)
    """Wait after each of these steps, once, until the run is asked to stop or killed."""
    hold_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest such wait, seconds; then the run goes on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a session needs to know besides its task's config."""

    checkpoint: CheckpointSettings
    tracker: TrackerSettings
    requeue: RequeueSettings = RequeueSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    preflight: PreflightSettings = PreflightSettings()
    profiler: ProfilerSettings = ProfilerSettings()
    throughput: ThroughputSettings = ThroughputSettings()
    drill: DrillSettings = DrillSettings()
