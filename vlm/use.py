"""Captions and scores of a trained model, as rows that a command prints."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.runtime.errors import UserError
from launcher.runtime.world import World
from vlm.config import ShapesData, TrainConfig
from vlm.data.dataset import CaptionRows, open_data, open_unseen_pairs
from vlm.data.row import BadRow, decode_picture, resized
from vlm.model.generate import generate
from vlm.precision import Precision
from vlm.trained import Trained
from vlm.validation import exact_match, mean_loss, write_captions

_BATCH = 64


def caption_files(trained: Trained, files: Sequence[Path], device: str, **options: Any) -> list[dict[str, str]]:
    """``picture`` and ``caption`` of each file; ``options`` are ``generate``'s.

    Raises:
        UserError: a file is missing or no readable picture.
    """
    size = trained.model.config.img_size
    rows = []
    for file in files:  # one at a time: a folder of photographs need not fit into memory
        images = torch.from_numpy(_picture(file, size)[None]).to(device)
        rows.append({"picture": str(file), "caption": generate(trained.model, trained.tokenizer, images, **options)[0]})
    return rows


def caption_validation(trained: Trained, count: int, device: str, **options: Any) -> list[dict[str, str]]:
    """``picture``, ``caption`` and ``true`` caption of the run's first ``count`` validation (else training) rows."""
    if not count:
        return []
    data = open_data(_config(trained), trained.tokenizer)
    chosen = (data.val if len(data.val) else data.train)[:count]
    images = data.rows.batch(chosen).to(device).images
    written = generate(trained.model, trained.tokenizer, images, **options)
    return [
        {"picture": f"row {row + 1}", "caption": caption, "true": data.rows.decoded.caption(int(row))}
        for row, caption in zip(chosen, written, strict=True)
    ]


def scores(trained: Trained, limit: int, device: str) -> dict[str, dict[str, Any]]:
    """``rows``, ``loss`` (nats per target token) and ``exact`` captions of each split, at most ``limit`` rows each."""
    config = _config(trained)
    data = open_data(config, trained.tokenizer)
    parts = {"train": (data.rows, data.train), "val": (data.rows, data.val)}
    if isinstance(config.data, ShapesData):
        unseen = open_unseen_pairs(config.data, config.model.img_size, trained.tokenizer)
        if unseen is not None:
            parts["unseen_pairs"] = (unseen, np.arange(len(unseen.decoded)))
    return {
        name: _score(trained, config, rows, chosen[:limit], device)
        for name, (rows, chosen) in parts.items()
        if len(chosen)
    }


def _score(trained: Trained, config: TrainConfig, rows: CaptionRows, chosen: np.ndarray, device: str) -> dict[str, Any]:
    precision = Precision(config.precision, device)
    loss = mean_loss(trained.model, rows, chosen, _BATCH, World(device=device), precision)
    pairs = write_captions(trained.model, rows, chosen, _BATCH, device)
    return {"rows": len(pairs), "loss": loss, "exact": round(exact_match(pairs) * len(pairs))}


def _config(trained: Trained) -> TrainConfig:
    if trained.config is None:
        raise UserError(f"{trained.source}: an exported model has no data of its own; name the run directory")
    return trained.config


def _picture(file: Path, size: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what makes a picture unusable is an error
            return resized(decode_picture(file.read_bytes()), size)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except BadRow as error:
        raise UserError(f"{file}: {error}") from None
