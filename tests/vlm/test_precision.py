"""Mixed precision: which arithmetic, and the loss scaling of fp16."""

from __future__ import annotations

import pytest
import torch

from vlm.config import PrecisionConfig
from vlm.precision import Precision


def precision(kind, **changes):
    return Precision(PrecisionConfig(kind=kind, **{"init_scale": 8.0, "growth_interval": 2} | changes), "cpu")


@pytest.mark.parametrize(
    ("kind", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrices_multiply_in_the_precision_asked_for(kind, dtype):
    with precision(kind).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_only_fp16_scales_its_loss(kind):
    chosen = precision(kind)
    assert not chosen.scaler.is_enabled() and float(chosen.scaler.scale(torch.tensor(3.0))) == 3.0


def updated(chosen, gradient):
    """A parameter of 1 after one step with this gradient."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    chosen.scaler.scale((weight * gradient).sum()).backward()
    chosen.scaler.step(optimizer)
    chosen.scaler.update()
    return float(weight.detach())


def test_fp16_scales_grows_and_skips_overflows():
    chosen = precision("fp16")
    assert chosen.scaler.get_scale() == 8.0
    assert updated(chosen, 1.0) == 0.5  # unscaled before it is used
    assert updated(chosen, 1.0) == 0.5 and chosen.scaler.get_scale() == 16.0  # growth_interval=2
    assert updated(chosen, float("inf")) == 1.0 and chosen.scaler.get_scale() == 8.0  # skipped, halved


def test_the_scalers_state_survives_a_round_trip():
    first, second = precision("fp16"), precision("fp16", init_scale=2.0)
    updated(first, 1.0)
    second.scaler.load_state_dict(first.scaler.state_dict())
    assert second.scaler.state_dict() == first.scaler.state_dict()
