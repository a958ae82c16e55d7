"""States taken apart and put together again: whatever may be in one comes back as it was."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from launcher.runtime.checkpoint.tree import put_together, take_apart
from tests.launcher.runtime.saving import same


def round_trip(value):
    tree, tensors = take_apart(value, "x")
    return put_together(json.loads(json.dumps(tree)), tensors.__getitem__)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4)
tensors = st.builds(
    lambda shape, dtype: torch.arange(int(np.prod(shape)), dtype=torch.float32).to(dtype).reshape(shape),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
)
kinds = st.sampled_from(["f4", "f8", "i8", "u1", "?", "f2"])
ndarrays = arrays.arrays(kinds, arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
names = st.sampled_from(["a", "b", "a.b", "a~2", "0", "", "__metadata__", "tensor", "dict"])
keys = names | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=2)
keys |= st.tuples(st.integers(), st.text(max_size=1))
values = st.recursive(
    scalars | tensors | ndarrays,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(values)
def test_whatever_may_be_in_a_state_comes_back_as_it_was(value):
    assert same(round_trip(value), value)


def test_names_that_read_the_same_stay_apart():
    value = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}
    value |= {"": torch.tensor(5), "__metadata__": torch.tensor(6), "a.b~2": torch.tensor(7)}
    _, named = take_apart(value, "x")
    assert len(named) == 7 and "__metadata__" not in named and "" not in named
    assert same(round_trip(value), value)


def test_what_a_model_calls_its_tensors_is_what_they_are_called():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    _, named = take_apart(model.state_dict(), "model")
    assert list(named) == list(model.state_dict())


class Colour(str, enum.Enum):  # noqa: UP042  StrEnum has another __str__
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("given_value", "back"),
    [
        (Colour.RED, "red"),
        (Level.LOW, 1),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (OrderedDict(a=1), {"a": 1}),
        (namedtuple("Pair", "x y")(1, 2), (1, 2)),
        (torch.Size([1, 2]), (1, 2)),
        (bytearray(b"ab"), b"ab"),
        ({Colour.RED: 1, Level.LOW: 2}, {"red": 1, 1: 2}),
        (-0.0, -0.0),
        (2**70, 2**70),
        ("\ud800", "\ud800"),
    ],
)
def test_kinds_that_are_kept_as_plainer_ones(given_value, back):
    found = round_trip(given_value)
    assert same(found, back) and str(found) == str(back)


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[::2], np.s_[::-1, ::-1]])
def test_an_array_comes_back_however_it_lies_in_memory(view):
    value = np.arange(12.0).reshape(3, 4)[view]
    assert same(round_trip(value), np.ascontiguousarray(value))


def test_an_array_that_may_not_be_written_is_saved_and_may_be_written_after():
    back = round_trip(np.frombuffer(b"abcd", np.uint8))
    back[0] = 0
    assert back.tobytes() == b"\0bcd"


def test_plain_values_are_copied_and_tensors_are_not():
    words, tensor = ["a"], torch.zeros(2)
    tree, named = take_apart({"words": words, "t": tensor}, "x")
    words.append("b")
    tensor.fill_(1)
    assert put_together(tree, named.__getitem__)["words"] == ["a"]
    assert named["t"].data_ptr() == tensor.data_ptr() and not named["t"].requires_grad


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {2}]}, r"^state x\.a\.1: a set cannot be saved \(allowed: tensors"),
        (object(), r"^state x: a object cannot be saved"),
        ({"m": torch.nn.Linear(1, 1)}, r"^state x\.m: a Linear cannot be saved .* objects with state_dict\(\)"),
        ({"d": torch.float32}, r"^state x\.d: a dtype cannot be saved"),
        ({"n": np.array(["a"])}, r"^state x\.n: a ndarray of <U1 cannot be saved"),
        ({"n": np.array([object()])}, r"^state x\.n: a ndarray of object cannot be saved"),
        ({"n": np.zeros(2, "M8[s]")}, r"^state x\.n: a ndarray of datetime64\[s\] cannot be saved"),
        ({"n": np.zeros(2, ">f4")}, r"^state x\.n: a ndarray of >f4 cannot be saved"),
        ({"n": np.ma.masked_array([1, 2], [0, 1])}, r"^state x\.n: a MaskedArray of int64 cannot be saved"),
        ({"n": np.longdouble(1)}, r"^state x\.n: a longdouble cannot be saved"),
        ({"c": 1j}, r"^state x\.c: a complex cannot be saved"),
        ({frozenset(): 1}, r"^state x: a frozenset cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_place(value, words):
    with pytest.raises(TypeError, match=words):
        take_apart(value, "x")


@pytest.mark.parametrize("tree", [{}, {"a": 1, "b": 2}, {"code": "x"}, {"dict": [[1]]}, {"tensor": "none"}])
def test_what_is_no_tree_is_refused(tree):
    with pytest.raises((ValueError, LookupError)):
        put_together(tree, {}.__getitem__)
