"""What a sample costs: floating point operations of the model, counted from its shape. No torch."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from vlm.config import ModelConfig

Count = TypeVar("Count", int, np.ndarray)


def sample_flops(config: ModelConfig, vocab_size: int, text: Count) -> Count:
    """FLOPs of one training sample, forward and backward, with ``text`` text positions: the begin token and a caption.

    Matrix products count, a multiplication and an addition each as one (as ``torch.utils.flop_counter`` and PaLM do,
    arXiv 2204.02311, appendix B: attention in full, causal or not); norms, activations and the optimizer are left out,
    and so is padding. Backward costs twice the forward: a product has two gradients. The patches' has one, as nobody
    asks for that of pixels.

    Args:
        text: a number, or ``(B,) int``, one for each sample.
    """
    patches = _product(config.n_patches, 3 * config.patch_size**2, config.image_embed_dim)
    return 3 * (_picture_flops(config) + _text_flops(config, vocab_size, text)) + 2 * patches


def _picture_flops(config: ModelConfig) -> int:
    """Forward of the vision blocks and the projector."""
    width, cls = config.image_embed_dim, config.image_tokens == "cls"
    positions = config.n_patches + cls
    last = _block(width, positions, 1 if cls else positions)  # of which only the CLS output is read
    projector = _product(config.n_image_tokens, width, 4 * width)
    projector += _product(config.n_image_tokens, 4 * width, config.n_embd)
    return (config.n_blocks - 1) * _block(width, positions, positions) + last + projector


def _text_flops(config: ModelConfig, vocab_size: int, text: Count) -> Count:
    """Forward of the decoder over picture and text, and of the output layer over the text."""
    positions = config.n_image_tokens + text
    return config.n_layer * _block(config.n_embd, positions, positions) + _product(text, config.n_embd, vocab_size)


def _block(width: int, positions: Count, queries: Count) -> Count:
    """Forward of a block in which ``queries`` of ``positions`` look at all of them, and the others are given up."""
    queries_and_output = 2 * _product(queries, width, width)
    keys_and_values = _product(positions, width, 2 * width)
    scores_and_values = 2 * _product(queries, width, positions)
    feed_forward = 2 * _product(queries, width, 4 * width)
    return queries_and_output + keys_and_values + scores_and_values + feed_forward


def _product(rows: Count, inner: int, columns: Count | int) -> Count:
    """Of a ``(rows, inner)`` by an ``(inner, columns)`` matrix."""
    return 2 * rows * inner * columns
