"""The seemore architecture as plain functions of a state dict with the seeds' names: independent of our modules."""

from __future__ import annotations

import math

import torch

Weights = dict[str, torch.Tensor]


def random_weights(
    vocab: int, width: int, vision: int, layers: int, blocks: int, heads: int, img: int, patch: int, positions: int
) -> Weights:
    """A state dict of random numbers with the names and shapes of the seeds' checkpoints."""
    drawn = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "vision_encoder.cls_token": (1, 1, vision),
        "vision_encoder.pos_embedding": (1, (img // patch) ** 2 + 1, vision),
        "vision_encoder.patch_embedding.conv.weight": (vision, 3, patch, patch),
        "vision_encoder.patch_embedding.conv.bias": (vision,),
        "decoder.token_embedding_table.weight": (vocab, width),
        "decoder.position_embedding_table.weight": (positions, width),
        "decoder.image_projection.net.0.weight": (4 * vision, vision),
        "decoder.image_projection.net.0.bias": (4 * vision,),
        "decoder.image_projection.net.2.weight": (width, 4 * vision),
        "decoder.image_projection.net.2.bias": (width,),
        "decoder.lm_head.weight": (vocab, width),
        "decoder.lm_head.bias": (vocab,),
    }
    for norm, size in (("vision_encoder.layer_norm", vision), ("decoder.ln_f", width)):
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    for tower, size, count in (("vision_encoder", vision, blocks), ("decoder", width, layers)):
        for i in range(count):
            block = f"{tower}.blocks.{i}"
            for head in range(heads):
                for part in ("key", "query", "value"):
                    shapes[f"{block}.attn.heads.{head}.{part}.weight"] = (size // heads, size)
            shapes |= {f"{block}.attn.proj.weight": (size, size), f"{block}.attn.proj.bias": (size,)}
            shapes |= {f"{block}.ffn.0.weight": (4 * size, size), f"{block}.ffn.0.bias": (4 * size,)}
            shapes |= {f"{block}.ffn.2.weight": (size, 4 * size), f"{block}.ffn.2.bias": (size,)}
            for norm in ("ln1", "ln2"):
                shapes |= {f"{block}.{norm}.weight": (size,), f"{block}.{norm}.bias": (size,)}
    return {name: 0.3 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}


def logits(w: Weights, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits ``(B, 1 + T, V)`` for ``images: (B, 3, H, W)`` normalised and ``tokens: (B, T)``; no dropout."""
    image = _projection(w, _vision(w, images))
    x = torch.cat([image[:, None], w["decoder.token_embedding_table.weight"][tokens]], dim=1)
    x = x + w["decoder.position_embedding_table.weight"][: x.shape[1]]
    for i in range(_count(w, "decoder.blocks.")):
        x = _block(w, f"decoder.blocks.{i}", x, causal=True)
    x = _norm(w, "decoder.ln_f", x)
    return x @ w["decoder.lm_head.weight"].T + w["decoder.lm_head.bias"]


def _vision(w: Weights, images: torch.Tensor) -> torch.Tensor:
    kernel = w["vision_encoder.patch_embedding.conv.weight"]
    patch = kernel.shape[-1]
    rows = []
    for top in range(0, images.shape[2], patch):
        for left in range(0, images.shape[3], patch):
            piece = images[:, None, :, top : top + patch, left : left + patch]
            rows.append((piece * kernel[None]).sum(dim=(2, 3, 4)) + w["vision_encoder.patch_embedding.conv.bias"])
    x = torch.cat([w["vision_encoder.cls_token"].expand(len(images), -1, -1), torch.stack(rows, dim=1)], dim=1)
    x = x + w["vision_encoder.pos_embedding"]
    for i in range(_count(w, "vision_encoder.blocks.")):
        x = _block(w, f"vision_encoder.blocks.{i}", x, causal=False)
    return _norm(w, "vision_encoder.layer_norm", x[:, 0])


def _projection(w: Weights, x: torch.Tensor) -> torch.Tensor:
    name = "decoder.image_projection.net"
    hidden = _gelu(x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"])
    return hidden @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]


def _block(w: Weights, name: str, x: torch.Tensor, causal: bool) -> torch.Tensor:
    normed = _norm(w, f"{name}.ln1", x)
    length, width = x.shape[1:]
    outputs = []
    for head in range(_count(w, f"{name}.attn.heads.")):
        q, k, v = (normed @ w[f"{name}.attn.heads.{head}.{part}.weight"].T for part in ("query", "key", "value"))
        scores = q @ k.transpose(1, 2) / math.sqrt(width)
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        outputs.append(torch.softmax(scores, dim=-1) @ v)
    x = x + torch.cat(outputs, dim=-1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
    x = _norm(w, f"{name}.ln2", x)
    hidden = _gelu(x @ w[f"{name}.ffn.0.weight"].T + w[f"{name}.ffn.0.bias"])
    return x + hidden @ w[f"{name}.ffn.2.weight"].T + w[f"{name}.ffn.2.bias"]


def _norm(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _count(w: Weights, prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in w if name.startswith(prefix)})
