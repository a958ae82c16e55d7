"""What a run of the vision-language model will leave on disk, counted from its config. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from launcher.runtime.footprint import Footprint
from vlm.config import CsvData, ModelConfig, ShapesData, TrainConfig

_FLOAT_BYTES = 4
"""Weights and both moments of Adam are fp32, whatever the precision of the forward pass."""
_HEADER_BYTES = 105
"""What a tensor's name, type, shape and place take in a safetensors file."""
_NAME_BYTES = 75
"""What its name takes among the plain values of a state."""
_BYTE_VOCABULARY = 256
_N_SPECIAL = 4
_SAMPLED = 200
"""Captions of a CSV file that are looked at for its characters."""
_SHEET_ROW_BYTES = {"shapes": 4_000, "csv": 20_000}
"""A captioned picture in the sheet that validation shows: text, and flat shapes or a photograph of 96 pixels."""
_SAMPLE_ROW_BYTES = 13
"""A row of ``samples.csv``."""
_TRAINING_NUMBERS = 11
"""That are logged each time: loss, rate, epoch, five times, samples and tokens a second, share of the peak."""


def footprint_of(config: TrainConfig) -> Footprint:
    """What a run of the resolved ``config`` will leave.

    Raises:
        UserError: the data cannot be read any more.
    """
    trainer, rows = config.trainer, _rows(config.data)
    n_val = round(config.data.val_fraction * rows)
    steps = trainer.max_steps or (trainer.epochs or 0) * math.ceil((rows - n_val) / trainer.batch_size)
    vocab = vocabulary(config)
    sizes = parameter_sizes(config.model, vocab)
    once = _tensors_bytes(sizes)
    shared = _tensors_bytes((vocab * config.model.n_embd,)) if config.model.tie_weights else 0  # saved by both names
    records, looks = _times(steps, trainer.log_every), _times(steps, trainer.val_every)
    validations = looks if n_val else 0
    shown = min(trainer.captions, n_val or rows)
    numbers = _TRAINING_NUMBERS + (config.precision.kind == "fp16")
    return Footprint(
        steps=steps,
        weights_bytes=once + shared,
        # Two moments, and for each tensor a count of steps with a header of its own.
        optimizer_bytes=2 * once + len(sizes) * _tensors_bytes((1,)),
        plain_bytes=len(sizes) * _NAME_BYTES,
        validations=validations,
        records=records,
        numbers=records * numbers + validations,
        pictures=looks if shown else 0,
        picture_bytes=looks * shown * _SHEET_ROW_BYTES[config.data.kind],
        own_bytes=steps * trainer.batch_size * _SAMPLE_ROW_BYTES if trainer.log_samples else 0,
        own_files=int(trainer.log_samples),
    )


def _tensors_bytes(sizes: Sequence[int]) -> int:
    return sum(sizes) * _FLOAT_BYTES + len(sizes) * _HEADER_BYTES


def _times(steps: int, every: int | None) -> int:
    """How often something is due that is due each ``every`` steps and at the end."""
    return -(-steps // every) if every else 1


@cache
def parameter_sizes(config: ModelConfig, vocab_size: int) -> tuple[int, ...]:
    """Numbers in each parameter tensor of the model; a matrix that two layers share counts once."""
    width, text = config.image_embed_dim, config.n_embd
    cls = config.image_tokens == "cls"
    vision = [*_linear(3 * config.patch_size**2, width), *([width] if cls else []), (config.n_patches + cls) * width]
    vision += [*config.n_blocks * _block(width), *_norm(width)]
    projector = [*_linear(width, 4 * width), *_linear(4 * width, text)]
    decoder = [vocab_size * text, config.positions * text, *config.n_layer * _block(text), *_norm(text)]
    head = () if config.tie_weights else _linear(text, vocab_size)
    return (*vision, *projector, *decoder, *head)


def _linear(inputs: int, outputs: int) -> list[int]:
    return [inputs * outputs, outputs]


def _norm(width: int) -> list[int]:
    return [width, width]


def _block(width: int) -> list[int]:
    attention = [width * 3 * width, *_linear(width, width)]
    feed_forward = [*_linear(width, 4 * width), *_linear(4 * width, width)]
    return [*_norm(width), *attention, *_norm(width), *feed_forward]


def vocabulary(config: TrainConfig) -> int:
    """Tokens of the model's vocabulary: exact for bytes, else of the characters that captions are seen to have."""
    if config.tokenizer.kind == "byte":
        return _BYTE_VOCABULARY + _N_SPECIAL
    data = config.data
    if isinstance(data, CsvData):
        return _csv_characters(data.path or "", data.cache_dir, data.caption_column, data.digest) + _N_SPECIAL
    from vlm.data.shapes import letters

    return len(letters(data)) + _N_SPECIAL


@cache
def _csv_characters(path: str, cache_dir: str, column: str, digest: str | None) -> int:
    """How many characters the captions of rows all over a file have; ``digest`` tells its contents apart."""
    from vlm.data.csv_index import open_index

    index = open_index(Path(path), Path(cache_dir))
    place, found = index.header.index(column), set[str]()
    for row in range(0, len(index), max(len(index) // _SAMPLED, 1)):
        try:
            found.update(index.fields(row)[place])
        except (ValueError, IndexError):  # a bad row, of which the run will speak
            continue
    return len(found)


def _rows(data: CsvData | ShapesData) -> int:
    return _csv_rows(data.path or "", data.cache_dir, data.digest) if isinstance(data, CsvData) else data.count


@cache
def _csv_rows(path: str, cache_dir: str, digest: str | None) -> int:
    from vlm.data.csv_index import open_index

    return len(open_index(Path(path), Path(cache_dir)))
