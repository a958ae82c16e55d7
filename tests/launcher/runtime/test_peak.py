"""The most that a device computes: as it is given, or measured without a trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from launcher.runtime import peak
from launcher.runtime.peak import measured_flops, peak_flops


@pytest.fixture
def sizes(monkeypatch):
    """``sizes(seconds)``: the sizes that are tried where every product takes so long; ``peak`` of the last one."""

    def tried(seconds):
        seen = []
        monkeypatch.setattr(peak, "_seconds", lambda size, *_: seen.append(size) or seconds)
        found = measured_flops("cpu", torch.float32)
        return seen, found

    return tried


@pytest.mark.parametrize(("wanted", "flops"), [(None, None), (2, 2e12), (0.5, 5e11)])
def test_what_is_given_is_not_measured(monkeypatch, wanted, flops):
    monkeypatch.setattr(peak, "measured_flops", lambda *_: pytest.fail("measured"))
    assert peak_flops(wanted, "cpu", torch.float32) == flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_draws_nothing_and_changes_no_setting(dtype):
    def settings():
        return (
            torch.get_num_threads(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(), random.getstate(), torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
        )  # fmt: skip

    before = settings()
    assert peak_flops("measure", "cpu", dtype) > 1e6
    assert settings() == before


def test_a_slow_device_is_asked_for_the_smallest_product_only(sizes):
    seen, (flops, size) = sizes(1.0)
    assert seen == [256] and flops == 2 * 256**3 and size == 256


def test_a_fast_device_is_asked_for_larger_ones_and_the_best_counts(sizes):
    seen, (flops, size) = sizes(1e-9)
    assert [*dict.fromkeys(seen)] == [256, 512, 1024, 2048] and flops == 2 * 2048**3 / 1e-9 and size == 2048


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_memory_is_given_back_and_its_peak_counted_anew():
    held = torch.cuda.memory_allocated()
    flops, _ = measured_flops("cuda:0", torch.bfloat16)
    assert flops > 1e12 and torch.cuda.memory_allocated() == held
    assert torch.cuda.max_memory_allocated() == held
