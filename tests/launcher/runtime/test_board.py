"""What ranks tell each other of a step: the words of all, joined as an agreement joins them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime import board
from launcher.runtime.board import RankBoard


def boards(peaks, monkeypatch, **seconds):
    """A board for each rank, each on a node of its own, that has heard all the others; ``seconds`` by phase."""
    made = [RankBoard(rank, [f"n{i}" for i in range(len(peaks))], "cpu") for rank in range(len(peaks))]
    for rank, (each, peak) in enumerate(zip(made, peaks, strict=True)):
        monkeypatch.setattr(board, "peak_bytes", lambda _, peak=peak: peak)
        each.note({f"time/{phase}": values[rank] for phase, values in seconds.items()} | {"train/note": "hello"})
    joined = [max(words) for words in zip(*(each.words() for each in made), strict=True)]
    for each in made:
        each.hear(joined)
    return made


def test_alone_a_rank_tells_its_own_peak_at_once(monkeypatch):
    monkeypatch.setattr(board, "peak_bytes", lambda device: 5)
    alone = RankBoard(0, ["here"], "cpu")
    alone.note({"time/total": 1.0})
    assert alone.told() == {"memory/peak_bytes": 5.0}
    assert alone.final() == {"peak_memory_bytes": 5, "peak_memory_rank": None}


def test_the_first_rank_tells_whose_peak_is_the_largest_and_says_it_again_only_when_it_is_anothers(monkeypatch):
    main = boards([3, 9, 4], monkeypatch)[0]
    assert main.told() == {"memory/peak_bytes": 9.0, "memory/peak_rank": "rank 1 on n1"}
    assert main.told() == {"memory/peak_bytes": 9.0}
    monkeypatch.setattr(board, "peak_bytes", lambda device: 10)
    main.note({})
    assert main.told() == {"memory/peak_bytes": 10.0, "memory/peak_rank": "rank 0 on n0"}


def test_phases_and_memory_do_not_get_into_each_others_way(monkeypatch):
    main = boards([1, 2], monkeypatch, data=[0.1, 0.1], forward=[0.1, 0.5])[0]
    assert main.told() == pytest.approx(
        {
            "memory/peak_bytes": 2.0, "memory/peak_rank": "rank 1 on n1", "ranks/data_max_s": 0.1,
            "ranks/data_mean_s": 0.1, "ranks/forward_max_s": 0.5, "ranks/forward_mean_s": 0.3,
            "ranks/slowest": "rank 1 on n1: forward 0.5 s, mean 0.3 s",
        }
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 1 << 50), st.floats(1e-6, 1e6)), min_size=2, max_size=6))
def test_every_rank_hears_the_same_of_all(figures):
    peaks, seconds = zip(*figures, strict=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        told = [each.told() for each in boards(peaks, monkeypatch, forward=seconds)]
    assert all(one == told[0] for one in told)
    assert told[0]["memory/peak_bytes"] == max(peaks) and told[0]["ranks/forward_max_s"] == max(seconds)
