"""A run's data, opened: decoded rows, the split, the tokenizer, and batches of tensors made from row numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xxhash

from launcher.runtime.errors import UserError
from launcher.runtime.polling import Poll, keep_going
from vlm.config import CsvData, DataConfig, ShapesData, TokenizerConfig, TrainConfig
from vlm.data.build_once import polled
from vlm.data.cache import DecodedRows, open_decoded
from vlm.data.csv_index import open_index
from vlm.data.shapes import CAPTION_COLUMN, IMAGE_COLUMN, scene_files
from vlm.data.split import split_rows
from vlm.data.tokenizer import BEGIN, END, PAD, ByteTokenizer, CharTokenizer, Tokenizer

log = logging.getLogger(__name__)

IGNORE = -100
"""Target of a position that has none (cross entropy's ignore index)."""


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass."""

    images: torch.Tensor
    """``(B, 3, H, W) uint8``."""
    inputs: torch.Tensor
    """``(B, T) int64``: the begin token, then the caption, then padding."""
    targets: torch.Tensor
    """``(B, T) int64``: the caption, then the end token; ``IGNORE`` behind it."""
    rows: torch.Tensor
    """``(B,) int64``: row numbers, from 0."""

    def to(self, device: str) -> Batch:
        """This batch on ``device``; from pinned memory the copy overlaps with computation."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory (called by torch's DataLoader)."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(change(self.images), change(self.inputs), change(self.targets), self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class CaptionRows:
    """The rows of one data file as tensors."""

    def __init__(self, decoded: DecodedRows, tokenizer: Tokenizer) -> None:
        self.decoded = decoded
        self.tokenizer = tokenizer

    def batch(self, rows: np.ndarray, images: np.ndarray | None = None) -> Batch:
        """The samples ``rows``; with ``images`` (augmented ones) in place of their own pictures."""
        lengths = self.lengths(rows)
        tokens = self.tokenizer.encode(self.decoded.captions(rows))
        places = np.arange(lengths.max(initial=0) + 1)
        inside = places[:-1] < lengths[:, None]
        inputs = np.full((len(rows), len(places)), PAD, np.int64)
        targets = np.full(inputs.shape, IGNORE, np.int64)
        inputs[:, 0] = BEGIN
        inputs[:, 1:][inside] = tokens
        targets[:, :-1][inside] = tokens
        targets[np.arange(len(rows)), lengths] = END
        pixels = self.decoded.images[rows] if images is None else images
        return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (pixels, inputs, targets, rows)))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of the captions of ``rows``, the end token not counted."""
        return self.tokenizer.lengths(self.decoded.caption_chars[rows], self.decoded.caption_sizes(rows))

    def n_targets(self, rows: np.ndarray) -> int:
        """Target tokens of the samples ``rows``: their captions' tokens and an end token each."""
        return int(self.lengths(rows).sum()) + len(rows)


@dataclass(frozen=True)
class CaptionData:
    """What a run trains and validates on."""

    rows: CaptionRows
    train: np.ndarray
    """Row numbers."""
    val: np.ndarray
    """Row numbers; empty without validation."""
    tokenizer: Tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """XXH3-128 of all that step N is made of besides the config: which rows train, their pictures and captions.

        Of a picture its 16 bytes of identity count, so that a million rows take no longer than their captions.
        """
        decoded = self.rows.decoded
        digest = xxhash.xxh3_128()
        for part in (decoded.picture_ids, decoded.caption_ends, self.train, self.val):  # a bad row's are empty
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        digest.update(decoded.caption_bytes)
        return digest.hexdigest()


def open_data(
    config: TrainConfig, tokenizer: Tokenizer | None = None, poll: Poll = keep_going, stage: Path | None = None
) -> CaptionData:
    """Open the data of a resolved config, building index, cache and rendered scenes where they are not there yet.

    Args:
        tokenizer: the one of a trained model; None: made from the training captions.
        poll: called about every ``ASK_S`` of work; what it raises leaves nothing half-built behind.
        stage: folder on this node's own disk from which the decoded rows are read.

    Raises:
        UserError: the data cannot be used (see ``open_index`` and ``open_decoded``), or does not fit the config.
    """
    file = data_file(config.data, poll)
    decoded = _decoded(config.data, file, config.model.img_size, poll, stage)
    train, val = split_rows(decoded, config.data.val_fraction, config.data.split_by, config.data.split_seed, poll)
    if len(train) < config.trainer.batch_size:
        raise UserError(
            f"trainer.batch_size={config.trainer.batch_size} is larger than the data: "
            f"{len(train)} rows to train on, {len(val)} to validate"
        )
    if config.data.val_fraction and not len(val):
        log.warning("all rows share one picture or caption: nothing is left to validate on")
    tokenizer = tokenizer or _tokenizer(config.tokenizer, decoded, train, poll)
    rows = CaptionRows(decoded, tokenizer)
    _check_lengths(rows, np.concatenate([train, val]), config.model.max_text, file)
    return CaptionData(rows, train, val, tokenizer)


def open_unseen_pairs(data: ShapesData, img_size: int, tokenizer: Tokenizer) -> CaptionRows | None:
    """The scenes with shape-colour pairs that no run has trained on, or None where none was held out."""
    _, unseen = scene_files(data)
    return CaptionRows(_decoded(data, unseen, img_size), tokenizer) if unseen else None


def data_file(data: CsvData | ShapesData, poll: Poll = keep_going) -> Path:
    """The CSV file that holds the data."""
    return scene_files(data, poll)[0] if isinstance(data, ShapesData) else Path(data.path or "")


def _decoded(
    data: DataConfig, path: Path, size: int, poll: Poll = keep_going, stage: Path | None = None
) -> DecodedRows:
    index = open_index(path, Path(data.cache_dir), poll)
    columns = (data.image_column, data.caption_column) if isinstance(data, CsvData) else (IMAGE_COLUMN, CAPTION_COLUMN)
    if isinstance(data, CsvData) and data.digest not in (None, index.digest):
        raise UserError(f"{path}: has changed since the run was planned (SHA-256 {index.digest}, was {data.digest})")
    index.require_columns(*columns)
    return open_decoded(index, *columns, size, data.on_error, Path(data.cache_dir), poll, stage)


def _tokenizer(config: TokenizerConfig, decoded: DecodedRows, train: np.ndarray, poll: Poll) -> Tokenizer:
    if config.kind == "byte":
        return ByteTokenizer()
    return CharTokenizer.of(decoded.caption(int(row)) for row in polled(train, poll))


def _check_lengths(rows: CaptionRows, chosen: np.ndarray, max_text: int, path: Path) -> None:
    """Refuse captions that the model cannot hold: cutting them off would train another task in silence."""
    positions = rows.lengths(chosen) + 1
    longest = int(positions.argmax())
    if positions[longest] > max_text:
        raise UserError(
            f"{path}: row {chosen[longest] + 1}: its caption takes {positions[longest]} positions, the model has "
            f"{max_text} for text; raise model.positions by at least {positions[longest] - max_text}"
        )
