"""A trained model and what using it takes: found in a run directory or in an exported folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as to_safetensors

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.distributed import require_device
from launcher.runtime.errors import UserError
from launcher.runtime.files import write_atomic, write_json
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import parse
from vlm.config import ModelConfig, TrainConfig
from vlm.data.tokenizer import Tokenizer, tokenizer_from_json
from vlm.model.vlm import NORMALIZATION, VisionLanguageModel, load_weights
from vlm.torch_file import load_file

log = logging.getLogger(__name__)

_WEIGHTS, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Trained:
    """A model with its weights, on a device, in evaluation mode."""

    model: VisionLanguageModel
    tokenizer: Tokenizer
    normalize: str
    source: Path
    """The checkpoint or folder that the weights came from."""
    config: TrainConfig | None
    """The run's config; None for an exported folder."""


def load_trained(path: Path, checkpoint: str = "best", device: str = "cpu") -> Trained:
    """The model of a run directory, of the newest run in a sweep's folder, or of an exported folder.

    Args:
        checkpoint: of a run: ``best`` (by validation), ``last``, or the path of a checkpoint folder or file.

    Raises:
        UserError: there is no trained model, or the checkpoint is damaged or another model's.
    """
    require_device(device)
    if (path / _WEIGHTS).exists():
        return _load_exported(path, device)
    rundir = find_run(path)
    config: TrainConfig = Plan.read(rundir).config()
    source, content = _checkpoint(rundir, checkpoint)
    try:
        weights, tokenizer = content["model"], tokenizer_from_json(content["tokenizer"])
    except (KeyError, TypeError):
        raise UserError(f"{source}: is no checkpoint of this task (it should hold 'model' and 'tokenizer')") from None
    model = build_model(config.model, config.data.normalize, tokenizer.vocab_size, weights, source)
    return Trained(model.to(device).eval(), tokenizer, config.data.normalize, source, config)


def find_run(path: Path) -> RunDir:
    """The run directory ``path``, or the newest one with a checkpoint in the sweep's folder ``path``.

    Raises:
        UserError: there is none.
    """
    if RunDir(path).plan.exists():
        return RunDir(path)
    runs = [RunDir(plan.parent) for plan in path.glob(f"*/{RunDir(path).plan.name}")]
    trained = [run for run in runs if run.checkpoints.is_dir()]
    if not trained:
        what = f"none of its {len(runs)} runs has a checkpoint" if runs else "is no run, no sweep and no exported model"
        raise UserError(f"{path}: {what}")
    newest = max(trained, key=lambda run: run.status.stat().st_mtime)
    if len(trained) > 1:
        log.info("%s: of its %d runs the newest, %s", path, len(trained), newest.path.name)
    return newest


def build_model(
    config: ModelConfig, normalize: str, vocab_size: int, weights: Mapping[str, torch.Tensor], source: Path
) -> VisionLanguageModel:
    """A model with ``weights``.

    Raises:
        UserError: the weights are those of another model; names the first difference.
    """
    model = VisionLanguageModel(config, vocab_size, normalize)
    load_weights(model, weights, str(source))
    return model


def export(
    folder: Path, model: VisionLanguageModel, tokenizer: Tokenizer | None, normalize: str, *, origin: str
) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``tokenizer.json`` into a new folder.

    Raises:
        UserError: ``folder`` is there and not empty.
    """
    weights = model.state_dict()
    if model.config.tie_weights:  # the same tensor under two names, which the format refuses
        del weights["decoder.head.weight"]
    config = {"model": asdict(model.config), "normalize": normalize, "origin": origin}
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _CONFIG, config)
        if tokenizer is not None:
            write_json(folder / _TOKENIZER, tokenizer.to_json())
        # Last: a folder without weights is no model to anybody.
        write_atomic(
            folder / _WEIGHTS, to_safetensors({k: v.contiguous() for k, v in weights.items()}, {"format": "pt"})
        )
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None


def _load_exported(folder: Path, device: str) -> Trained:
    if not (folder / _TOKENIZER).exists():
        raise UserError(
            f"{folder}: has no {_TOKENIZER}; convert again with --characters to give the model its alphabet"
        )
    try:
        found = json.loads((folder / _CONFIG).read_text())
        tokenizer = tokenizer_from_json(json.loads((folder / _TOKENIZER).read_text()))
        weights = load_safetensors(folder / _WEIGHTS)
        config, normalize = parse(ModelConfig, found["model"]), found["normalize"]
        if normalize not in NORMALIZATION:
            raise ValueError(f"normalize={normalize!r}: should be one of {', '.join(NORMALIZATION)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be read as an exported model: {error}") from None
    if config.tie_weights:
        weights["decoder.head.weight"] = weights["decoder.tokens.weight"]
    model = build_model(config, normalize, tokenizer.vocab_size, weights, folder)
    return Trained(model.to(device).eval(), tokenizer, normalize, folder, None)


def _checkpoint(rundir: RunDir, wanted: str) -> tuple[Path, dict[str, Any]]:
    if wanted not in ("best", "last"):
        path = Path(wanted)
        return path, load(path) if path.is_dir() else load_file(path)
    kinds = ("best", "final", "step") if wanted == "best" else ("final", "step")
    for kind in kinds:
        for path in rundir.list_checkpoints(kind):
            return path, load(path)
    raise UserError(f"{rundir.path}: has no {wanted} checkpoint yet")
