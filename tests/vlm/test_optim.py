"""Optimizer groups and the learning rate over steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.config import OptimConfig, ScheduleConfig
from vlm.optim import lr_share, make_optimizer

OPTIM = {"lr": 0.1, "weight_decay": 0.5, "betas": [0.9, 0.99], "eps": 1e-8}
KINDS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimizer_is_torchs_own(kind):
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimConfig(kind=kind, decay="all", **OPTIM))
    assert type(optimizer) is KINDS[kind]
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["weight_decay"] == 0.5


def test_only_matrices_are_decayed_if_asked_for():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    optimizer = make_optimizer(model, OptimConfig(kind="adamw", decay="matrices", **OPTIM))
    decays = {p.dim(): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.5, 1: 0.0}


@given(st.integers(0, 30), st.integers(1, 200), st.sampled_from(["cosine", "constant"]), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_never_leaves_its_range(warmup, extra, kind, floor):
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, min_lr_fraction=floor)
    total = warmup + extra
    shares = [lr_share(step, total, config) for step in range(total)]
    assert all(0 < s <= 1 + 1e-12 for s in shares[:warmup]) and shares[:warmup] == sorted(shares[:warmup])
    assert all(floor - 1e-9 <= s <= 1 + 1e-9 for s in shares[warmup:])
    assert shares[warmup] == pytest.approx(1)
    if kind == "cosine":
        assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
        assert lr_share(total, total, config) == pytest.approx(floor)


def test_warm_up_longer_than_the_run_only_rises():
    config = ScheduleConfig(kind="cosine", warmup_steps=10, min_lr_fraction=0.0)
    assert [lr_share(step, 3, config) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])
