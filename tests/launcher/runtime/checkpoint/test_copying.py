"""Every byte arrives, however tensors are cut into pieces and shared out over threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.checkpoint import copying
from launcher.runtime.checkpoint.copying import Copier
from launcher.runtime.world import STREAMING, tunables


@given(sizes=st.lists(st.integers(0, 300), max_size=12), piece=st.integers(1, 64), threads=st.integers(1, 5))
def test_all_tensors_arrive_whole(sizes, piece, threads):
    before = torch.get_num_threads(), copying._PIECE
    torch.set_num_threads(threads)
    copying._PIECE = piece
    try:
        sources = [torch.arange(size, dtype=torch.int32) + i for i, size in enumerate(sizes)]
        targets = [torch.full_like(source, -1) for source in sources]
        Copier().copy(targets, sources)
    finally:
        torch.set_num_threads(before[0])
        copying._PIECE = before[1]
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=40), n=st.integers(1, 4))
def test_shares_hold_every_piece_once_and_about_as_many_bytes(sizes, n):
    pieces = [(i, i, size) for i, size in enumerate(sizes)]
    shares = copying._shared_out(pieces, n)
    assert len(shares) == n and [piece for share in shares for piece in share] == pieces
    assert all(sum(size for *_, size in share) <= sum(sizes) / n + max(sizes) for share in shares)


@pytest.mark.parametrize("source", [torch.arange(12).view(3, 4).t(), torch.arange(6)[::2], torch.tensor(7)])
def test_what_does_not_lie_in_one_piece_is_copied_too(source):
    target = torch.zeros(source.shape, dtype=source.dtype)
    Copier().copy([target], [source])
    assert torch.equal(target, source)


def test_a_process_that_is_started_with_the_tunable_copies_the_same():
    code = "import torch; from launcher.runtime.checkpoint.copying import Copier\n"
    code += "a = torch.randn(5_000_000); b = torch.zeros_like(a); Copier().copy([b], [a]); print(torch.equal(a, b))"
    env = os.environ | {"GLIBC_TUNABLES": tunables(None)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True" and not done.stderr


def test_what_the_user_says_of_glibc_comes_last_and_wins():
    assert tunables(None) == STREAMING
    assert tunables("glibc.malloc.check=3") == f"{STREAMING}:glibc.malloc.check=3"
