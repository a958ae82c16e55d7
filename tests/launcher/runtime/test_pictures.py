"""What the pictures of a run are made of: smoothed losses, phases put on top of one another."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from launcher.runtime.picture.loss import draw_losses, smoothed
from launcher.runtime.picture.timing import draw_times, times_of

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
SECONDS = st.floats(0, 1e3)


def colours(png: bytes) -> set[tuple[int, int, int]]:
    """Those of many pixels, white left out: an area each."""
    with Image.open(io.BytesIO(png)) as picture:
        found = picture.convert("RGB").getcolors(1 << 24)
    return {colour for count, colour in found if count > 10_000 and colour != (255, 255, 255)}


@given(st.lists(ANY, min_size=1, max_size=80), st.integers(0, 60))
def test_what_is_smoothed_is_the_mean_of_the_finite_values_around_it(values, half):
    line = smoothed(np.array(values), 2 * half + 1)
    assert len(line) == len(values)
    for at, mean in enumerate(line):
        near = [v for v in values[max(0, at - half) : at + half + 1] if math.isfinite(v)]
        assert math.isnan(mean) == (not near)
        if near:
            assert mean == pytest.approx(sum(near) / len(near), rel=1e-4, abs=1e-6 * max(map(abs, near)))


@given(
    st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=60),
    st.integers(1, 10), st.integers(1, 20),
)  # fmt: skip
def test_phases_sum_to_the_total_and_their_shares_to_one(rows, every, most):
    steps = [every * (i + 1) for i in range(len(rows))]
    series = {name: (steps, [row[i] for row in rows]) for i, name in enumerate(("forward", "data", "odd"))}
    series["total"] = (steps, [sum(row) for row in rows])
    times = times_of(series)
    assert [*times.phases][:3] == ["data", "forward", "odd"]
    assert times.total == pytest.approx(np.array(series["total"][1]))
    whole = sum(map(sum, rows))
    assert sum(times.shares().values()) == pytest.approx(1.0 if whole else 0.0)
    coarse = times.coarser(most)
    assert len(coarse.steps) == min(most, len(rows)) and coarse.steps[-1] == steps[-1]
    assert coarse.mean() == pytest.approx(times.mean()) == pytest.approx(whole / len(rows))


def test_a_wait_for_a_save_is_shared_out_over_the_steps_of_its_log():
    steps = [10, 20, 30]
    times = times_of({"forward": (steps, [0.1] * 3), "total": (steps, [0.1] * 3), "save": ([15], [2.0])})
    assert times.phases["save"].tolist() == [0.0, 0.2, 0.0]
    assert times.shares() == pytest.approx({"forward": 0.6, "save": 0.4})


def test_what_a_total_has_beyond_its_phases_is_other():
    times = times_of({"forward": ([1, 2], [1.0, 1.0]), "total": ([1, 2], [1.5, 1.5])})
    assert times.phases["other"].tolist() == [0.5, 0.5]
    assert [*times_of({"total": ([1], [0.5])}).phases] == ["total"]


def test_of_what_is_missing_torn_or_not_finite_nothing_is_counted():
    times = times_of({"data": ([2], [math.nan]), "forward": ([1, 2], [1.0, math.inf]), "total": ([1, 2, 3], [1.0] * 3)})
    assert times.phases["data"].tolist() == [0.0, 0.0, 0.0] and times.phases["forward"].tolist() == [1.0, 0.0, 0.0]


def test_a_first_step_that_takes_long_does_not_flatten_the_others():
    usual = {"forward": ([*range(1, 31)], [0.01] * 30), "backward": ([*range(1, 31)], [0.02] * 30)}
    slow = {name: (steps, [9.0, *values[1:]]) for name, (steps, values) in usual.items()}
    assert len(colours(draw_times(usual, "x"))) == 2
    assert colours(draw_times(slow, "x")) == colours(draw_times(usual, "x"))
    assert times_of(slow).usual().shares() == pytest.approx(times_of(usual).shares())


@pytest.mark.parametrize("points", [1, 2, 41, 5000])
def test_a_picture_of_any_length_shows_training_and_validation(points):
    drawn = np.random.default_rng(0)
    losses = (3 * np.exp(-np.arange(points) / points * 4) + 0.1 * drawn.random(points)).tolist()
    steps = [*range(1, points + 1)]
    series = {"train/loss": (steps, losses), "val/loss": (steps[-1:], [0.5]), "train/epoch": (steps, steps)}
    with Image.open(io.BytesIO(draw_losses(series, "sweep/run $x$"))) as picture:
        assert picture.size == (1080, 600)


def test_the_same_numbers_make_the_same_bytes():
    series = {"train/loss": ([1, 2], [1.0, 0.5])}
    assert draw_losses(series, "x") == draw_losses(series, "x")
