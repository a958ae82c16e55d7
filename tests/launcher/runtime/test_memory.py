"""Peak memory: of this process, and of the rank that needs most."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime import memory
from launcher.runtime.memory import forget_peak, largest, peak_bytes

MB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory now (proc(5), ``statm``)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_peak_of_a_cpu_is_the_largest_resident_set_so_far():
    before = peak_bytes("cpu")
    assert before >= resident() - MB
    block = b"x" * (before + 64 * MB)  # more than all that was held: what else is here may be paged out meanwhile
    after = peak_bytes("cpu")
    assert after >= before + 32 * MB
    del block
    assert peak_bytes("cpu") >= after - MB  # the kernel counts by the page and by the core


def test_what_was_held_before_is_forgotten():
    block = b"x" * (200 * MB)
    before = peak_bytes("cpu")
    del block
    forget_peak("cpu")
    assert peak_bytes("cpu") < before - 100 * MB


def test_a_kernel_that_does_not_tell_the_peak_is_asked_another_way(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 1000 kB\n")
    for status in (tmp_path / "status", tmp_path / "none"):
        monkeypatch.setattr(memory, "_STATUS", status)
        assert peak_bytes("cpu") > MB


@given(st.lists(st.integers(0, 1 << 50), min_size=1, max_size=9))
def test_the_rank_that_needs_most_is_named_with_its_node(peaks):
    most, where = largest(peaks, [f"n{rank // 2}" for rank in range(len(peaks))])
    rank = int(where.split()[1])
    assert most == max(peaks) == peaks[rank] and where == f"rank {rank} on n{rank // 2}"
