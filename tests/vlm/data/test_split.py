"""The split: no picture on both sides, whatever the file looks like, and the same split each time."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlm.data.cache import DecodedRows
from vlm.data.split import split_rows

USABLE = st.sampled_from([True, True, True, False])
SPARSE = st.tuples(st.integers(0, 40), st.sampled_from([f"caption {i}" for i in range(40)]), USABLE)
DENSE = st.tuples(st.integers(0, 9), st.sampled_from("abcdefgh"), USABLE)
ROWS = st.lists(SPARSE, min_size=1, max_size=30) | st.lists(DENSE, min_size=1, max_size=20)
"""(picture, caption, whether it is usable) of each row."""
FRACTION = st.floats(0.01, 0.99)
SPLIT_BY = st.sampled_from(["image", "caption"])
SEED = st.integers(0, 2**40)


def decoded(rows):
    """Decoded rows as the cache would give them."""
    texts = [caption.encode() for _, caption, _ in rows]
    return DecodedRows(
        images=np.zeros((len(rows), 3, 1, 1), np.uint8),
        picture_ids=np.array([picture.to_bytes(16) for picture, _, _ in rows], "V16"),
        caption_bytes=memoryview(b"".join(texts)),
        caption_ends=np.cumsum([len(text) for text in texts]),
        caption_chars=np.array([len(caption) for _, caption, _ in rows]),
        bad={number: "bad" for number, (_, _, usable) in enumerate(rows) if not usable},
    )


def sides(rows, fraction, split_by, seed):
    """What stands on each side, as (picture, caption) pairs."""
    return tuple([rows[i][:2] for i in side] for side in split_rows(decoded(rows), fraction, split_by, seed))


def groups(rows, split_by):
    """Number of groups of usable rows that have to stay together."""
    found = []
    for picture, caption, usable in rows:
        if not usable:
            continue
        keys = {picture} | ({caption} if split_by == "caption" else set())
        linked = [group for group in found if group & keys]
        found = [group for group in found if not group & keys] + [keys.union(*linked)]
    return len(found)


common = settings(deadline=None, max_examples=100)


@common
@given(rows=ROWS, fraction=FRACTION, split_by=SPLIT_BY, seed=SEED)
def test_no_picture_stands_on_both_sides(rows, fraction, split_by, seed):
    assume(groups(rows, split_by))
    train, val = sides(rows, fraction, split_by, seed)
    assert not {picture for picture, _ in train} & {picture for picture, _ in val}


@common
@given(rows=ROWS, fraction=FRACTION, seed=SEED)
def test_split_by_caption_keeps_captions_on_one_side_too(rows, fraction, seed):
    assume(groups(rows, "caption"))
    train, val = sides(rows, fraction, "caption", seed)
    assert not {caption for _, caption in train} & {caption for _, caption in val}
    assert not {picture for picture, _ in train} & {picture for picture, _ in val}


@common
@given(rows=ROWS, fraction=FRACTION, split_by=SPLIT_BY, seed=SEED)
def test_every_usable_row_stands_on_one_side_and_no_bad_one_on_either(rows, fraction, split_by, seed):
    assume(groups(rows, split_by))
    train, val = split_rows(decoded(rows), fraction, split_by, seed)
    usable = [number for number, row in enumerate(rows) if row[2]]
    assert sorted([*train.tolist(), *val.tolist()]) == usable
    assert train.tolist() == sorted(train.tolist()) and val.tolist() == sorted(val.tolist())


@common
@given(rows=ROWS, fraction=FRACTION, split_by=SPLIT_BY, seed=SEED)
def test_the_share_of_groups_validates_and_each_side_has_one(rows, fraction, split_by, seed):
    count = groups(rows, split_by)
    assume(count)
    train, val = sides(rows, fraction, split_by, seed)
    validating = groups([(*row, True) for row in val], split_by)
    assert validating == min(max(round(fraction * count), 1), count - 1)
    if count > 1:
        assert train and val
    else:
        assert train and not val


@common
@given(rows=ROWS, fraction=FRACTION, split_by=SPLIT_BY, seed=SEED)
def test_the_same_rows_are_split_the_same(rows, fraction, split_by, seed):
    assume(groups(rows, split_by))
    assert sides(rows, fraction, split_by, seed) == sides(rows, fraction, split_by, seed)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), rows=ROWS, fraction=FRACTION, split_by=SPLIT_BY, seed=SEED)
def test_the_order_of_the_rows_in_the_file_does_not_matter(data, rows, fraction, split_by, seed):
    assume(groups(rows, split_by))
    shuffled = data.draw(st.permutations(rows))
    for one, other in zip(
        sides(rows, fraction, split_by, seed), sides(shuffled, fraction, split_by, seed), strict=True
    ):
        assert Counter(one) == Counter(other)


def test_a_picture_with_several_captions_stands_on_one_side_whichever_comes_first():
    rows = [(picture, f"caption {picture} {n}", True) for picture in range(40) for n in range(3)]
    _, val = sides(rows, 0.25, "caption", 0)
    _, reversed_val = sides(rows[::-1], 0.25, "caption", 0)
    assert len(val) == 30
    assert sorted(val) == sorted(reversed_val)


@common
@given(rows=ROWS, split_by=SPLIT_BY, seed=SEED)
def test_a_fraction_of_0_keeps_nothing_for_validation(rows, split_by, seed):
    train, val = split_rows(decoded(rows), 0, split_by, seed)
    assert train.tolist() == [number for number, row in enumerate(rows) if row[2]]
    assert val.tolist() == []


def test_a_picture_added_moves_few_others():
    rows = [(picture, "x", True) for picture in range(200)]
    before = set(sides(rows, 0.2, "image", 0)[1])
    after = set(sides([(1000, "x", True), *rows], 0.2, "image", 0)[1])
    assert len(before ^ after) <= 2


@pytest.mark.parametrize("split_by", ["image", "caption"])
def test_another_seed_makes_another_split(split_by):
    rows = [(picture, f"caption {picture}", True) for picture in range(100)]
    splits = {tuple(sides(rows, 0.1, split_by, seed)[1]) for seed in range(5)}
    assert len(splits) == 5


def test_a_chain_of_shared_pictures_and_captions_is_one_group():
    chain = [(number // 2, "abcdefgh"[(number + 1) // 2], True) for number in range(14)]
    train, val = split_rows(decoded([*chain, (99, "alone", True)]), 0.5, "caption", 3)
    assert sorted([len(train), len(val)]) == [1, 14]
