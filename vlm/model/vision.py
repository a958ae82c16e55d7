"""The vision transformer: pictures to a sequence of image embeddings."""

from __future__ import annotations

import torch
from torch import nn

from vlm.config import ModelConfig
from vlm.model.block import tower
from vlm.model.dropout import dropout


class PatchEmbedding(nn.Module):
    """Non-overlapping patches times a matrix: a convolution with stride = patch, as one GEMM."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(3 * patch * patch, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` to ``(B, patches, C)``, patches row by row."""
        p = self.patch
        batch, channels, height, width = images.shape
        patches = images.view(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return self.linear(patches.reshape(batch, -1, channels * p * p))


class VisionTransformer(nn.Module):
    """ViT (arXiv 2010.11929); returns its CLS output, or every patch's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.image_embed_dim
        self.only_cls = config.image_tokens == "cls"
        self.dropout = config.dropout
        self.patches = PatchEmbedding(config.patch_size, width)
        if self.only_cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, config.n_patches + self.only_cls, width))
        self.blocks = tower(config.n_blocks, width, config, causal=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images: (B, 3, H, W)`` normalised to ``(B, N, C)``, N = 1 with CLS only."""
        x = self.patches(images)
        if self.only_cls:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.to(self.cls_token.dtype)], dim=1)
        x = dropout(x + self.positions, self.dropout, self.training)
        *first, last = self.blocks
        for block in first:
            x = block(x)
        # Only the CLS output of the last block is read: nothing else of it is computed.
        return self.norm(last(x, queries=1 if self.only_cls else None))
