"""Which rows train and which validate, so that no picture stands on both sides."""

from __future__ import annotations

import hashlib

import numpy as np

from launcher.runtime.polling import Poll, keep_going
from vlm.data.build_once import polled
from vlm.data.cache import DecodedRows


def split_rows(
    rows: DecodedRows, val_fraction: float, split_by: str, seed: int, poll: Poll = keep_going
) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, validation rows): two sorted arrays of row numbers, bad rows in neither.

    Rows that share a picture (with ``split_by="caption"`` also those that share a caption) form a group, and a group
    goes to one side. Groups are ordered by a hash of what they share and ``seed``, never by their place in the file;
    the first of them, ``val_fraction`` of their number, validate: at least one group on each side where there are two.
    """
    usable = np.setdiff1d(np.arange(len(rows)), np.fromiter(rows.bad, np.int64, len(rows.bad)))
    if not val_fraction:
        return usable, usable[:0]
    groups = _groups(rows, usable, split_by == "caption", poll)
    by_hash = np.argsort(np.array([_order(rows, int(row), split_by, seed) for row in polled(usable, poll)]))
    _, first = np.unique(groups[by_hash], return_index=True)  # a group stands where the first of its hashes stands
    count = len(first)
    n_val = min(max(round(val_fraction * count), 1), count - 1)
    chosen = np.argsort(first)[:n_val]
    validates = np.isin(groups, chosen)
    return usable[~validates], usable[validates]


def _order(rows: DecodedRows, row: int, split_by: str, seed: int) -> bytes:
    what = rows.caption(row).encode() if split_by == "caption" else rows.picture_ids[row].tobytes()
    return hashlib.blake2b(what, digest_size=16, key=str(seed).encode()).hexdigest().encode()


def _groups(rows: DecodedRows, usable: np.ndarray, by_caption: bool, poll: Poll) -> np.ndarray:
    """A group number from 0 for each of ``usable``."""
    _, by_picture = np.unique(rows.picture_ids[usable], return_inverse=True)
    if not by_caption:
        return by_picture
    captions = np.array(
        [hashlib.blake2b(rows.caption(int(r)).encode(), digest_size=16).digest() for r in polled(usable, poll)], "V16"
    )
    _, by_text = np.unique(captions, return_inverse=True)
    return _connected(by_picture, by_text)


def _connected(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Components of the rows when those that share a value in ``a`` or in ``b`` belong together."""
    groups = a
    while True:  # each round hands the smallest number on by one more link; real data has chains of one or two
        smallest = np.full(b.max() + 1, len(groups))
        np.minimum.at(smallest, b, groups)
        linked = smallest[b]
        smallest = np.full(a.max() + 1, len(groups))
        np.minimum.at(smallest, a, linked)
        linked = smallest[a]
        if np.array_equal(linked, groups):
            return np.unique(groups, return_inverse=True)[1]
        groups = linked
