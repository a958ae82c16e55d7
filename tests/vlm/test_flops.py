"""FLOPs by formula against those that torch counts in a forward and a backward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.vlm.test_model import named
from vlm.flops import sample_flops
from vlm.model.vlm import VisionLanguageModel, token_loss_sum


@pytest.mark.parametrize("text", [7, 40])
@pytest.mark.parametrize(("name", "dropout"), [("tiny", 0.0), ("small", 0.1), ("seemore", 0.1), ("seemore", 0.0)])
def test_the_formula_says_what_torch_counts(name, dropout, text):
    config, vocab, samples = named(name, dropout=dropout), 53, 2
    model = VisionLanguageModel(config, vocab, "half")
    images = torch.zeros(samples, 3, config.img_size, config.img_size, dtype=torch.uint8)
    tokens = torch.arange(samples * text).view(samples, text) % vocab
    # Without the fused kernel, of which torch counts a forward pass again in the backward one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        token_loss_sum(model(images, tokens), tokens).backward()
    assert samples * sample_flops(config, vocab, text) == pytest.approx(counted.get_total_flops(), rel=0.005)


@given(st.sampled_from(["tiny", "small", "seemore"]), st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_longer_texts_cost_more_and_many_samples_what_each_does(name, texts):
    config = named(name)
    each = [sample_flops(config, 100, text) for text in texts]
    assert sample_flops(config, 100, np.array(texts)).tolist() == each
    assert all(sample_flops(config, 100, text + 1) > flops for text, flops in zip(texts, each, strict=True))
