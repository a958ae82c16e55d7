"""The seemore architecture written plainly: the yardstick of the step benchmark.

One module for each head, the causal mask rebuilt in each call, every position of every block computed, a convolution
for patches, one optimizer kernel a parameter. State-dict names are the seeds'.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vlm.config import ModelConfig


class Head(nn.Module):
    """One attention head; scores are scaled by the full width."""

    def __init__(self, width: int, size: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.key = nn.Linear(width, size, bias=False)
        self.query = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.causal = causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, T, C)`` to ``(B, T, size)``."""
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        if self.causal:
            mask = torch.tril(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device))
            scores = scores.masked_fill(~mask, float("-inf"))
        attended: torch.Tensor = self.dropout(F.softmax(scores, dim=-1)) @ self.value(x)
        return attended


class Heads(nn.Module):
    """All heads of a layer, one after the other."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads, dropout, causal) for _ in range(heads))
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, T, C)`` to ``(B, T, C)``."""
        joined: torch.Tensor = self.dropout(self.proj(torch.cat([head(x) for head in self.heads], dim=-1)))
        return joined


class Block(nn.Module):
    """The second residual adds the normalised value."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = Heads(width, heads, dropout, causal)
        self.ln2 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, T, C)`` to ``(B, T, C)``."""
        x = x + self.attn(self.ln1(x))
        x = self.ln2(x)
        result: torch.Tensor = x + self.ffn(x)
        return result


class Patches(nn.Module):
    """Patches by a convolution."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` to ``(B, patches, C)``."""
        patches: torch.Tensor = self.conv(images).flatten(2).transpose(1, 2)
        return patches


class VisionEncoder(nn.Module):
    """A vision transformer that returns its CLS output."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.patch_embedding = Patches(c.patch_size, c.image_embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.image_embed_dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, c.n_patches + 1, c.image_embed_dim))
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c.image_embed_dim, c.n_head, c.dropout, False) for _ in range(c.n_blocks))
        self.layer_norm = nn.LayerNorm(c.image_embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` normalised to ``(B, C)``."""
        x = self.patch_embedding(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.dropout(x + self.pos_embedding)
        for block in self.blocks:
            x = block(x)
        embedding: torch.Tensor = self.layer_norm(x[:, 0])
        return embedding


class Projection(nn.Module):
    """Two layers."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        wide = 4 * c.image_embed_dim
        self.net = nn.Sequential(
            nn.Linear(c.image_embed_dim, wide), nn.GELU(), nn.Linear(wide, c.n_embd), nn.Dropout(c.dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, image_embed_dim)`` to ``(B, n_embd)``."""
        projected: torch.Tensor = self.net(x)
        return projected


class Decoder(nn.Module):
    """Image token first, text behind it, logits of every position."""

    def __init__(self, c: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, c.n_embd)
        self.position_embedding_table = nn.Embedding(c.positions, c.n_embd)
        self.image_projection = Projection(c)
        self.blocks = nn.ModuleList(Block(c.n_embd, c.n_head, c.dropout, True) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd)
        self.lm_head = nn.Linear(c.n_embd, vocab_size)

    def forward(self, inputs: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """``inputs: (B, T)`` and ``image: (B, image_embed_dim)`` to ``(B, 1 + T, V)``."""
        x = torch.cat([self.image_projection(image)[:, None], self.token_embedding_table(inputs)], dim=1)
        x = x + self.position_embedding_table(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.lm_head(self.ln_f(x))
        return logits


class PlainSeemore(nn.Module):
    """The whole model, with the seeds' parameter names."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.vision_encoder = VisionEncoder(config)
        self.decoder = Decoder(config, vocab_size)

    def forward(self, images: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """``images: (B, 3, H, W)`` in [-1, 1] and ``inputs: (B, T)`` to logits ``(B, 1 + T, V)``."""
        logits: torch.Tensor = self.decoder(inputs, self.vision_encoder(images))
        return logits
