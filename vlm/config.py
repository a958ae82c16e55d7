"""The task's config: every field with its type, unit, range and cross-checks. No torch, no pandas.

Values live in ``conf/``. Fields made with ``execution()`` do not change what is learned and stay out of a run's id.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from launcher.runtime.errors import UserError
from launcher.runtime.footprint import Footprint
from launcher.runtime.sections import NotNegative, Positive, Section, execution
from launcher.runtime.task_config import Facts

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Vision transformer, projector, decoder."""

    n_embd: Positive
    """Width of the decoder."""
    n_head: Positive
    """Attention heads, in both towers; divides both widths."""
    n_layer: Positive
    """Decoder blocks."""
    n_blocks: Positive
    """Vision blocks."""
    image_embed_dim: Positive
    """Width of the vision transformer."""
    img_size: Positive
    """Pictures are resized to this many pixels, square."""
    patch_size: Positive
    """Pixels on a side of a patch; divides ``img_size``."""
    dropout: Fraction
    """Probability of dropping, everywhere that the architecture drops."""
    positions: Positive
    """Size of the decoder's position table: image tokens and text tokens together."""
    image_tokens: Literal["cls", "patches"]
    """What the decoder sees of the picture: one token made of the CLS output, or one for each patch."""
    norm_residual: bool
    """True: a block's second residual adds the *normalised* value, as seemore does. False: plain pre-norm."""
    score_scale: Literal["width", "head"]
    """Attention scores are divided by the root of the full width (seemore) or of the head's (the usual)."""
    tie_weights: bool
    """Whether the output layer uses the token embedding's matrix."""

    def __post_init__(self) -> None:
        for name in ("n_embd", "image_embed_dim"):
            if getattr(self, name) % self.n_head:
                raise ValueError(f"{name}={getattr(self, name)} is not divisible by n_head={self.n_head}")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size={self.img_size} is not divisible by patch_size={self.patch_size}")
        if self.max_text < 2:
            raise ValueError(
                f"positions={self.positions} leaves no room for text behind {self.n_image_tokens} image tokens"
            )

    @property
    def n_patches(self) -> int:
        """Patches of one picture."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def n_image_tokens(self) -> int:
        """Positions that the picture takes in the decoder."""
        return 1 if self.image_tokens == "cls" else self.n_patches

    @property
    def max_text(self) -> int:
        """Longest text, in tokens fed to the decoder (the begin token counts, the end token is never fed)."""
        return self.positions - self.n_image_tokens


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """What every kind of data has."""

    val_fraction: Fraction
    """Share of the pictures kept for validation; 0: none."""
    split_by: Literal["image", "caption"]
    """Rows that share a picture (or a picture or a caption) stand on the same side of the split."""
    split_seed: Seed
    """Which pictures are kept for validation."""
    on_error: Literal["raise", "skip"]
    """A row that cannot be read stops the run, or is left out and counted."""
    normalize: Literal["half", "imagenet"]
    """Mean and deviation taken off the pixels: 0.5 and 0.5, or ImageNet's per channel."""
    augment_shift: NotNegative
    """Training pictures are shifted by up to so many pixels each way, edges repeated."""
    augment_flip: bool
    """Training pictures are mirrored left to right half the time; wrong where captions say left and right."""
    digest: str | None
    """Content of the data: the SHA-256 of a CSV file, or of what a rendering depends on. Filled in when the run is
    planned; give it yourself to insist on it."""
    workers: NotNegative = execution()
    """Processes that prepare batches; 0: this one. The cache makes one process enough on most machines."""
    cache_dir: str = execution()
    """Folder of indices, decoded pictures and rendered data, shared by all runs on this machine."""
    stage: str | None = execution(None)
    """Folder on the node's own disk into which decoded pictures are copied, once a node, and read from there;
    variables as in ``$TMPDIR`` are those of the node. null: they are read from ``cache_dir``."""

    def __post_init__(self) -> None:
        if self.stage is not None and not self.stage.startswith(("/", "$")):
            raise ValueError(f"stage={self.stage!r} should begin with a slash or a variable, e.g. $TMPDIR; or be null")


@dataclass(frozen=True, kw_only=True)
class CsvData(DataConfig):
    """Rows of a CSV file: a picture in base64 and its caption."""

    kind: Literal["csv"]
    path: str | None = execution()
    """The file; relative to the folder in which the command was typed."""
    image_column: str
    """Column of the base64 text."""
    caption_column: str
    """Column of the caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path is not set: name your CSV file, e.g. data.path=captions.csv")


@dataclass(frozen=True, kw_only=True)
class ShapesData(DataConfig):
    """Rendered scenes of coloured shapes on a grid; captions say what is where. Made on first use."""

    kind: Literal["shapes"]
    count: Positive
    """Scenes to render."""
    px: Annotated[int, Field(ge=16, le=1024)]
    """Pixels on a side of a rendered picture."""
    seed: Seed
    """Which scenes are drawn."""
    shapes: list[Literal["circle", "square", "triangle", "cross", "diamond", "ring"]]
    colors: list[Literal["red", "green", "blue", "yellow", "purple", "orange", "cyan", "white"]]
    sizes: list[Literal["small", "large"]]
    """With more than one, the caption names the size."""
    grid: Annotated[int, Field(ge=2, le=3)]
    """Places: 2x2 or 3x3."""
    objects: Annotated[int, Field(ge=1, le=3)]
    """Most objects in a scene."""
    unseen_pairs: NotNegative
    """So many shape-colour pairs appear in no training or validation scene, only in a test file of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shapes", "colors", "sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}={values} should name at least one, each once")
        pairs = len(self.shapes) * len(self.colors)
        if self.unseen_pairs >= pairs:
            raise ValueError(f"unseen_pairs={self.unseen_pairs} should be less than the {pairs} shape-colour pairs")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Section):
    """How captions become tokens."""

    kind: Literal["char", "byte"]
    """One token a character of the training captions, or one a UTF-8 byte."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """The optimizer."""

    kind: Literal["adamw", "adam"]
    """Decoupled weight decay (arXiv 1711.05101), or Adam with L2 (arXiv 1412.6980)."""
    lr: PositiveFloat
    """Peak learning rate."""
    weight_decay: NotNegativeFloat
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: PositiveFloat
    decay: Literal["all", "matrices"]
    """What is decayed: every parameter, or those of two and more dimensions (no biases, no norms)."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section):
    """Learning rate over steps, as a share of ``optim.lr``."""

    kind: Literal["cosine", "constant"]
    warmup_steps: NotNegative
    """Linear rise from 0 over the first steps."""
    min_lr_fraction: Annotated[float, Field(ge=0, le=1)]
    """Where cosine ends."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig(Section):
    """Arithmetic of the forward and backward pass; weights and optimizer stay fp32."""

    kind: Literal["auto", "fp32", "bf16", "fp16"]
    """auto becomes bf16 where the device multiplies it in hardware, else fp32, when the run is planned."""
    init_scale: PositiveFloat
    """First loss scale of fp16 (arXiv 1710.03740)."""
    growth_interval: Positive
    """Steps without overflow after which the loss scale of fp16 doubles."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Section):
    """How long, how much at a time, and how often something is looked at."""

    max_steps: Positive | None
    """Optimizer steps; exactly one of this and ``epochs`` is set."""
    epochs: Positive | None
    """Passes over the training rows."""
    batch_size: Positive
    """Global batch: samples of one optimizer step, over all ranks and accumulation."""
    seed: Seed
    """Initial weights, order of samples, dropout, augmentation."""
    grad_clip: NotNegativeFloat
    """Largest L2 norm of the gradient; 0: no clipping."""
    deterministic: bool
    """Only algorithms that give the same bits each time; slower on a GPU."""
    val_every: Positive | None = execution()
    """Validate each so many steps; null: only at the end."""
    val_batch_size: Positive = execution()
    """Samples of one validation pass on a rank."""
    val_batches: Positive | None = execution()
    """Most validation batches each time; null: all rows."""
    log_every: Positive = execution()
    """Record numbers each so many steps."""
    captions: NotNegative = execution()
    """Validation pictures captioned and shown each time; 0: none."""
    compile: bool = execution()
    """torch.compile; minutes at the start, worth it on GPUs."""
    log_samples: bool = execution()
    """Write ``samples.csv``: which sample was trained on in which step."""

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError(
                f"max_steps={self.max_steps} and epochs={self.epochs}: exactly one is set, the other is null "
                "(by epochs: trainer.max_steps=null trainer.epochs=10; by steps: trainer.epochs=null)"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """All that training the vision-language model depends on."""

    TARGET: ClassVar[str] = "vlm.task:train"
    """The task that this is the config of."""

    model: ModelConfig
    data: Annotated[CsvData | ShapesData, Field(discriminator="kind")]
    tokenizer: TokenizerConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    precision: PrecisionConfig
    trainer: TrainerConfig

    def resolve(self, facts: Facts) -> TrainConfig:
        """Settle what depends on the machine and the folder: absolute paths, the data's digest, the precision.

        Raises:
            UserError: the CSV cannot be used, or the precision does not exist on the device.
        """
        return dataclasses.replace(
            self, data=_resolve_data(self.data, self.trainer.batch_size, facts), precision=self._precision(facts)
        )

    def footprint(self) -> Footprint:
        """What a run of this config, resolved, will leave on disk.

        Raises:
            UserError: the data cannot be read any more.
        """
        from vlm.footprint import footprint_of

        return footprint_of(self)

    def continued_from(self, parent: TrainConfig, step: int) -> list[str]:
        """What to know before a run of this config begins from the state after ``step`` of one of ``parent``.

        Raises:
            UserError: the state does not fit, or no step is left to do.
        """
        from vlm.child import notes, require_fit

        require_fit(self, parent, step)
        return list(notes(self, parent, step))

    def _precision(self, facts: Facts) -> PrecisionConfig:
        kind = self.precision.kind
        if kind == "fp16" and facts.device == "cpu":
            raise UserError("precision=fp16: needs a GPU; on a CPU use precision=bf16, fp32 or auto")
        if kind == "bf16" and facts.device == "cuda" and not facts.bf16:
            raise UserError("precision=bf16: this GPU has no bf16; use precision=fp16, fp32 or auto")
        if kind == "auto":
            kind = "bf16" if facts.bf16 else "fp32"
        return dataclasses.replace(self.precision, kind=kind)


def _resolve_data(data: CsvData | ShapesData, batch_size: int, facts: Facts) -> CsvData | ShapesData:
    cache_dir = facts.absolute(data.cache_dir)
    data = dataclasses.replace(data, cache_dir=cache_dir)
    if isinstance(data, ShapesData):
        from vlm.data.shapes import scene_digest

        has, rows, digest = f"data.count={data.count}", data.count, scene_digest(data)
    else:
        from vlm.data.csv_index import open_index  # numpy only, and only where a file is read

        data = dataclasses.replace(data, path=facts.absolute(data.path or ""))
        index = open_index(Path(data.path or ""), Path(cache_dir))
        index.require_columns(data.image_column, data.caption_column)
        has, rows, digest = f"{data.path} has {len(index)} rows", len(index), index.digest
    if data.digest not in (None, digest):
        raise UserError(f"data.digest={data.digest}: it is {digest}, not the data that was meant")
    if rows < batch_size:
        raise UserError(f"trainer.batch_size={batch_size} is larger than the data: {has}")
    return dataclasses.replace(data, digest=digest)
