"""The decoder: a causal transformer that reads the picture first and the text behind it."""

from __future__ import annotations

import torch
from torch import nn

from vlm.config import ModelConfig
from vlm.model.block import KeyValueCache, tower
from vlm.model.dropout import dropout


class Projector(nn.Module):
    """From the vision transformer's width to the decoder's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.image_embed_dim
        self.dropout = config.dropout
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, config.n_embd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, image_embed_dim)`` to ``(B, N, n_embd)``."""
        return dropout(self.net(x), self.dropout, self.training)


class Decoder(nn.Module):
    """Positions 0 to N-1 are the picture, text follows; a position of text predicts the token behind it."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.n_embd
        self.heads = config.n_head
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(config.positions, width)
        self.blocks = tower(config.n_layer, width, config, causal=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=not config.tie_weights)
        if config.tie_weights:
            self.head.weight = self.tokens.weight

    def forward(self, picture: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, T, V)`` of the text positions, for ``picture: (B, N, C)`` and ``inputs: (B, T) int64``."""
        n_image = picture.shape[1]
        x = torch.cat([picture.to(self.tokens.weight.dtype), self.tokens(inputs)], dim=1)
        x = x + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, n_image:]))

    def caches(self, batch: int, room: int, like: torch.Tensor) -> list[KeyValueCache]:
        """An empty cache for each block, with ``room`` positions."""
        head_size = self.tokens.embedding_dim // self.heads
        return [KeyValueCache.empty(batch, self.heads, room, head_size, like) for _ in self.blocks]

    def extend(self, x: torch.Tensor, caches: list[KeyValueCache]) -> torch.Tensor:
        """Put embeddings ``x: (B, n, C)`` behind what ``caches`` hold; logits ``(B, V)`` of the last position."""
        start = caches[0].length
        x = x + self.positions.weight[start : start + x.shape[1]]
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache=cache)
        return self.head(self.norm(x[:, -1]))
