"""Dropout: how much, how it scales, when it acts, and that it can be repeated."""

from __future__ import annotations

import pytest
import torch

from vlm.model.block import attend
from vlm.model.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_asked_for_is_dropped_and_the_rest_scaled(p, dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(1001, 333, dtype=dtype), p, training=True)
    assert y.dtype == dtype
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.004)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-2, atol=0)


def test_every_place_is_dropped_alike():
    torch.manual_seed(1)
    shares = torch.stack([dropout(torch.ones(64), 0.5, training=True) == 0 for _ in range(4000)]).float().mean(0)
    assert shares.min() > 0.45 and shares.max() < 0.55


def test_it_acts_in_training_only_and_not_at_zero():
    x = torch.randn(5, 7)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x


def test_the_same_seed_drops_the_same():
    x = torch.randn(9, 11)
    torch.manual_seed(3)
    first = dropout(x, 0.3, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3, training=True), first)
    assert not torch.equal(dropout(x, 0.3, training=True), first)


def test_gradients_flow_where_nothing_was_dropped():
    x = torch.ones(100, requires_grad=True)
    y = dropout(x, 0.5, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_dropout_is_attention_on_average(dtype, causal):
    torch.manual_seed(4)
    q, k, v = (torch.randn(1, 2, 6, 8).to(dtype) for _ in range(3))
    whole = attend(q, k, v, causal=causal, scale=0.3, dropout=0.0)
    many = torch.stack([attend(q, k, v, causal=causal, scale=0.3, dropout=0.2) for _ in range(3000)])
    assert many.dtype == dtype and not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.float().mean(0), whole.float(), rtol=0, atol=0.06)
