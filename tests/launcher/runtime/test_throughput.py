"""What a training gets through in a second, and the share of the peak that this takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.throughput import Throughput, utilisation


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until ``clock.now`` is set."""
    made = SimpleNamespace(now=100.0)
    fake = SimpleNamespace(perf_counter=lambda: made.now)
    monkeypatch.setattr("launcher.runtime.throughput.time", fake)
    return made


def test_rates_are_of_the_time_since_the_counting_began(clock):
    rates = Throughput(flops_per_sample=3.0, peak_flops=None, ranks=1)
    rates.add(samples=1000, tokens=1000)
    clock.now = 200.0
    rates.begin()
    rates.add(samples=16, tokens=480)
    rates.add(samples=8, tokens=120)
    clock.now = 202.0
    assert rates.told() == {"train/samples_per_s": 12.0, "train/tokens_per_s": 300.0}


def test_a_pause_is_no_training_time(clock):
    rates = Throughput(flops_per_sample=3.0, peak_flops=None, ranks=1)
    rates.begin()
    rates.add(samples=10)
    with rates.pause():
        clock.now += 50.0
    clock.now += 1.0
    assert rates.told()["train/samples_per_s"] == 10.0


def test_with_a_peak_the_used_share_of_all_ranks_devices_is_told(clock):
    rates = Throughput(flops_per_sample=5e9, peak_flops=1e12, ranks=4)
    rates.begin()
    rates.add(samples=400)
    clock.now += 1.0
    assert rates.told()["train/mfu"] == 0.5


_SOME = st.floats(min_value=1e-3, max_value=1e18)


@given(_SOME, _SOME, st.integers(1, 1024), st.integers(1, 64))
def test_more_ranks_that_do_as_much_each_use_the_same_share(flops_per_s, peak, ranks, times):
    one = utilisation(flops_per_s, peak, ranks)
    assert one > 0
    assert utilisation(flops_per_s * times, peak, ranks * times) == pytest.approx(one)
    assert utilisation(flops_per_s, peak * times, ranks) == pytest.approx(one / times)
