"""Writing captions, a token at a time, each position computed once."""

from __future__ import annotations

import torch

from launcher.runtime.errors import UserError
from vlm.data.tokenizer import Tokenizer
from vlm.model.vlm import VisionLanguageModel


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    tokenizer: Tokenizer,
    images: torch.Tensor,
    *,
    max_tokens: int | None = None,
    prompt: str = "",
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """A caption for each of ``images: (B, 3, H, W) uint8``, up to the end token.

    Args:
        max_tokens: write at most so many; None: as many as the model has positions.
        prompt: every caption begins with it.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn from the softened distribution.
        top_k: draw among the k likeliest only.
    """
    was_training = model.training
    model.eval()
    decoder, config = model.decoder, model.config
    picture = model.picture(images)
    start = torch.from_numpy(tokenizer.start(prompt)).to(images.device)
    room = config.max_text - len(start) + 1  # the last token written is never read
    if room < 1:
        raise UserError(f"--prompt: {len(start)} tokens, the model reads at most {config.max_text}")
    steps = room if max_tokens is None else min(max_tokens, room)
    caches = decoder.caches(len(images), config.n_image_tokens + len(start) + steps, picture)
    x = torch.cat([picture, decoder.tokens(start).expand(len(images), -1, -1).to(picture.dtype)], dim=1)
    written: list[torch.Tensor] = []
    ended = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for _ in range(steps):
        logits = decoder.extend(x, caches).float()
        logits[:, list(tokenizer.unwritten)] = -torch.inf
        token = _next(logits, temperature, top_k, generator).masked_fill(ended, tokenizer.end)
        ended |= token == tokenizer.end
        written.append(token)
        if bool(ended.all()):
            break
        x = decoder.tokens(token)[:, None].to(picture.dtype)
    model.train(was_training)
    rows = torch.stack(written, dim=1).tolist() if written else [[] for _ in images]
    return [prompt + tokenizer.decode(_until(tokenizer.end, row)) for row in rows]


def _next(
    logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> torch.Tensor:
    """A token for each row of ``logits: (B, V)``."""
    if not temperature:
        return logits.argmax(dim=-1)
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
