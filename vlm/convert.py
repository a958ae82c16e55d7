"""A seed's checkpoint as our weights: the same numbers under our names, heads joined into fused matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from launcher.runtime.errors import UserError
from vlm.config import ModelConfig

Weights = Mapping[str, torch.Tensor]

_NAMES = {
    "vision_encoder.cls_token": "vision.cls_token",
    "vision_encoder.pos_embedding": "vision.positions",
    "vision_encoder.patch_embedding.conv.bias": "vision.patches.linear.bias",
    "vision_encoder.layer_norm.weight": "vision.norm.weight",
    "vision_encoder.layer_norm.bias": "vision.norm.bias",
    "decoder.image_projection.net.0.weight": "projector.net.0.weight",
    "decoder.image_projection.net.0.bias": "projector.net.0.bias",
    "decoder.image_projection.net.2.weight": "projector.net.2.weight",
    "decoder.image_projection.net.2.bias": "projector.net.2.bias",
    "decoder.token_embedding_table.weight": "decoder.tokens.weight",
    "decoder.position_embedding_table.weight": "decoder.positions.weight",
    "decoder.ln_f.weight": "decoder.norm.weight",
    "decoder.ln_f.bias": "decoder.norm.bias",
    "decoder.lm_head.weight": "decoder.head.weight",
    "decoder.lm_head.bias": "decoder.head.bias",
}
_CONV = "vision_encoder.patch_embedding.conv.weight"
_IN_BLOCK = [f"{part}.{leaf}" for part in ("ln1", "ln2", "attn.proj", "ffn.0", "ffn.2") for leaf in ("weight", "bias")]
_TOWERS = {"vision_encoder": "vision", "decoder": "decoder"}
_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DDP and torch.compile put before a state dict's names."""


def from_seed(state: Weights, source: Path | str) -> dict[str, torch.Tensor]:
    """Our state dict from a seed's; ``source`` is what errors call it.

    Raises:
        UserError: a parameter is missing or unknown: it is no seemore checkpoint.
    """
    if not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state.items()):
        raise UserError(f"{source}: is no seemore checkpoint: it holds other things than named tensors")
    seed = _unwrapped(state)
    try:
        ours = {our_name: seed.pop(name) for name, our_name in _NAMES.items()}
        ours["vision.patches.linear.weight"] = seed.pop(_CONV).flatten(1)
        for tower, our_tower in _TOWERS.items():
            for i in range(_count(seed, rf"{tower}\.blocks\.(\d+)\.")):
                ours |= _block(seed, f"{tower}.blocks.{i}", f"{our_tower}.blocks.{i}")
    except KeyError as error:
        raise UserError(f"{source}: is no seemore checkpoint: it has no {error.args[0]}") from None
    if seed:
        raise UserError(f"{source}: is no seemore checkpoint: unknown parameter {sorted(seed)[0]}")
    return ours


def config_of(state: Weights) -> ModelConfig:
    """The sizes of a seed's model, read off the shapes of its parameters (as ``from_seed`` accepts them)."""
    seed = _unwrapped(state)
    n_patches = seed["vision_encoder.pos_embedding"].shape[1] - 1
    patch = seed[_CONV].shape[-1]
    positions, n_embd = seed["decoder.position_embedding_table.weight"].shape
    return ModelConfig(
        n_embd=n_embd,
        n_head=_count(seed, r"decoder\.blocks\.0\.attn\.heads\.(\d+)\."),
        n_layer=_count(seed, r"decoder\.blocks\.(\d+)\."),
        n_blocks=_count(seed, r"vision_encoder\.blocks\.(\d+)\."),
        image_embed_dim=seed["vision_encoder.cls_token"].shape[-1],
        img_size=math.isqrt(n_patches) * patch,
        patch_size=patch,
        dropout=0.1,
        positions=positions,
        image_tokens="cls",
        norm_residual=True,
        score_scale="width",
        tie_weights=False,
    )


def _block(seed: dict[str, torch.Tensor], name: str, our_name: str) -> dict[str, torch.Tensor]:
    """Take one block out of ``seed``; queries, keys and values of all heads become one matrix, in this order."""
    heads = range(_count(seed, rf"{re.escape(name)}\.attn\.heads\.(\d+)\."))
    parts = [seed.pop(f"{name}.attn.heads.{h}.{part}.weight") for part in ("query", "key", "value") for h in heads]
    ours = {f"{our_name}.{leaf}": seed.pop(f"{name}.{leaf}") for leaf in _IN_BLOCK}
    if not parts:
        raise KeyError(f"{name}.attn.heads.0.query.weight")
    return ours | {f"{our_name}.attn.qkv.weight": torch.cat(parts)}


def _count(names: Weights, pattern: str) -> int:
    """How many different numbers ``pattern``'s group takes among ``names``."""
    return len({m[1] for name in names if (m := re.match(pattern, name))})


def _unwrapped(state: Weights) -> dict[str, torch.Tensor]:
    """``state`` without wrappers' prefixes, and without causal masks, which some versions keep as buffers."""
    result = {}
    for name, tensor in state.items():
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
        if not name.endswith(".tril"):
            result[name] = tensor
    return result
