"""Writing captions, a token at a time, each position computed once."""

from __future__ import annotations

import torch

from vlm.data.tokenizer import BEGIN, END, PAD, Tokenizer
from vlm.model.vlm import VisionLanguageModel


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    images: torch.Tensor,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    prompt: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Tokens that follow each of ``images: (B, 3, H, W) uint8``, up to the end token or ``max_tokens``.

    Args:
        temperature: 0 takes the likeliest token each time; above, tokens are drawn from the softened distribution.
        top_k: draw among the k likeliest only.
        prompt: ``(P,) int64``: tokens that every caption begins with; they are part of the result.
    """
    was_training = model.training
    model.eval()
    decoder, config = model.decoder, model.config
    picture = model.picture(images)
    begin = torch.tensor([BEGIN], device=images.device)
    text = begin if prompt is None else torch.cat([begin, prompt.to(images.device)])
    steps = min(max_tokens, config.max_text - len(text) + 1)
    caches = decoder.caches(len(images), config.n_image_tokens + len(text) + max(steps, 1), picture)
    x = torch.cat([picture, decoder.tokens(text).expand(len(images), -1, -1).to(picture.dtype)], dim=1)
    written = [text[1:].expand(len(images), -1)]
    ended = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for _ in range(steps):
        token = _next(decoder.extend(x, caches).float(), temperature, top_k, generator)
        token = token.masked_fill(ended, PAD)
        ended |= token == END
        written.append(token[:, None])
        if bool(ended.all()):
            break
        x = decoder.tokens(token)[:, None].to(picture.dtype)
    model.train(was_training)
    return [_until_end(row) for row in torch.cat(written, dim=1).tolist()]


def captions(model: VisionLanguageModel, images: torch.Tensor, tokenizer: Tokenizer) -> list[str]:
    """The likeliest caption, token by token (greedy), of each of ``images: (B, 3, H, W) uint8``."""
    return [tokenizer.decode(tokens) for tokens in generate(model, images, model.config.max_text)]


def _next(
    logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> torch.Tensor:
    """A token for each row of ``logits: (B, V)``; padding and the begin token are never written."""
    logits[:, [PAD, BEGIN]] = -torch.inf
    if not temperature:
        return logits.argmax(dim=-1)
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(END)] if END in tokens else tokens
