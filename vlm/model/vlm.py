"""The vision-language model: a picture and the text so far to the next token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from launcher.runtime.errors import UserError
from vlm.config import ModelConfig
from vlm.data.dataset import IGNORE
from vlm.model.decoder import Decoder, Projector
from vlm.model.vision import VisionTransformer

NORMALIZATION = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation by channel, of pixels in [0, 1]."""


class VisionLanguageModel(nn.Module):
    """Vision transformer, projector and decoder."""

    def __init__(self, config: ModelConfig, vocab_size: int, normalize: str) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config)
        self.projector = Projector(config)
        self.decoder = Decoder(config, vocab_size)
        mean, std = NORMALIZATION[normalize]
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        # Pixel values 0..255 times scale plus shift: normalisation in one pass. Not weights, so not saved.
        self.register_buffer("scale", (1 / (255 * torch.tensor(std))).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1), persistent=False)
        if not config.norm_residual:
            self.apply(_init)

    def picture(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W) uint8`` to what the decoder sees of them, ``(B, N, n_embd)``."""
        return self.projector(self.vision(images * self.scale + self.shift))

    def forward(self, images: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, T, V)``: position t of ``inputs: (B, T) int64`` predicts token t + 1."""
        return self.decoder(self.picture(images), inputs)


def token_loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross entropies, in nats, over the positions of ``targets: (B, T)`` that are not ``IGNORE``."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def load_weights(model: VisionLanguageModel, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Give ``model`` the ``weights`` that ``source`` held.

    Raises:
        UserError: they are another model's; names the first difference.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise UserError(
                f"{source}: belongs to another model: {name} is {given.get(name) or 'missing'} there "
                f"and {wanted.get(name) or 'unknown'} here"
            )
    model.load_state_dict(dict(weights))


def _init(module: nn.Module) -> None:
    """Small normal weights for pre-norm towers (GPT-2's 0.02); seemore keeps torch's own, as its seeds did."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, VisionTransformer):
        nn.init.normal_(module.positions, std=0.02)
