"""Sets of moments obey the laws of sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.trace.intervals import common, holds, total, union, without

_MOMENTS = st.integers(min_value=0, max_value=30)
_PARTS = st.lists(st.tuples(_MOMENTS, _MOMENTS), max_size=8)


def moments(parts):
    return {moment for start, end in parts for moment in range(start, end)}


@given(_PARTS, _PARTS)
def test_they_are_what_sets_of_moments_are(first, second):
    a, b = union(first), union(second)
    assert moments(a) == moments(first)
    assert moments(common(a, b)) == moments(a) & moments(b)
    assert moments(without(a, b)) == moments(a) - moments(b)
    assert total(a) == len(moments(first))
    assert total(common(a, b)) + total(without(a, b)) == pytest.approx(total(a))
    assert all(holds(a, moment) == (moment in moments(a)) for moment in range(31))


@given(_PARTS)
def test_a_union_is_sorted_and_its_parts_do_not_touch(parts):
    merged = union(parts)
    assert all(start < end for start, end in merged)
    assert all(before[1] < after[0] for before, after in pairwise(merged))
