"""The transformer block of both towers, with fused projections and scaled dot product attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vlm.config import ModelConfig
from vlm.model import dropout as dropping


@dataclass
class KeyValueCache:
    """Keys and values of the positions that one attention layer has seen: generation computes each position once."""

    keys: torch.Tensor
    """``(B, heads, room, head) ``; filled up to ``length``."""
    values: torch.Tensor
    length: int = 0

    @staticmethod
    def empty(batch: int, heads: int, room: int, head_size: int, like: torch.Tensor) -> KeyValueCache:
        """Room for ``room`` positions."""
        shape = (batch, heads, room, head_size)
        return KeyValueCache(like.new_empty(shape), like.new_empty(shape))

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add positions ``(B, heads, n, head)``; returns all so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float, dropout: float
) -> torch.Tensor:
    """Scaled dot product attention of ``(B, heads, T, head)`` tensors; a fused kernel wherever that is the faster way.

    On a CPU two cases are not (torch 2.13, a processor with AMX). With dropout torch has no fused kernel, and drawing
    takes most of the time. In bf16 its kernel took up to five times as long as the fp32 one at a hundred positions.
    """
    on_cpu = q.device.type == "cpu"
    if on_cpu and dropout:
        return _attend_dropping(q, k, v, causal, scale, dropout)
    if on_cpu and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal, scale=scale)
        return y.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)


def _attend_dropping(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float, p: float
) -> torch.Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    return dropping.dropout(weights, p, training=True) @ v


class SelfAttention(nn.Module):
    """Multi-head self-attention, queries, keys and values in one matrix multiplication."""

    def __init__(self, width: int, heads: int, *, causal: bool, scale: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.scale = scale
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, queries: int | None = None, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Attend from the first ``queries`` positions (None: from all) of ``x: (B, T, C)`` to all of them."""
        batch, length, width = x.shape
        if queries is None:
            q, k, v = (self._heads(part) for part in self.qkv(x).split(width, dim=-1))
        else:  # the other positions' queries would be thrown away
            weight_q, weight_kv = self.qkv.weight.split((width, 2 * width))
            q = self._heads(F.linear(x[:, :queries], weight_q))
            k, v = (self._heads(part) for part in F.linear(x, weight_kv).split(width, dim=-1))
        masked = self.causal and length > 1
        if cache is not None:
            k, v = cache.append(k, v)
        y = attend(q, k, v, causal=masked, scale=self.scale, dropout=self.dropout if self.training else 0.0)
        y = self.proj(y.transpose(1, 2).reshape(batch, -1, width))
        return dropping.dropout(y, self.dropout, self.training)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, T, C)`` as ``(B, heads, T, C / heads)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward net of four times the width, each behind a layer norm."""

    def __init__(
        self, width: int, heads: int, *, causal: bool, norm_residual: bool, score_scale: str, dropout: float
    ) -> None:
        super().__init__()
        scale = (width if score_scale == "width" else width // heads) ** -0.5
        self.norm_residual = norm_residual
        self.ln1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, causal=causal, scale=scale, dropout=dropout)
        self.ln2 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, queries: int | None = None, cache: KeyValueCache | None = None) -> torch.Tensor:
        """``x: (B, T, C)`` to ``(B, queries or T, C)``."""
        x = x[:, :queries] + self.attn(self.ln1(x), queries, cache)
        normed = self.ln2(x)
        return (normed if self.norm_residual else x) + self.ffn(normed)


def tower(count: int, width: int, config: ModelConfig, *, causal: bool) -> nn.ModuleList:
    """``count`` blocks of a model's kind."""
    return nn.ModuleList(
        Block(
            width,
            config.n_head,
            causal=causal,
            norm_residual=config.norm_residual,
            score_scale=config.score_scale,
            dropout=config.dropout,
        )
        for _ in range(count)
    )
