"""Images: bytes that are a safetensors file, filled again and again."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint.copying import Copier
from launcher.runtime.checkpoint.image import DTYPES, Image, read_header
from tests.launcher.runtime.saving import same


def tensor(dtype, shape=(3, 2), seed=0):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4
    return (numbers.abs() if dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64) else numbers).to(dtype)


def taken(tensors):
    image = Image(tensors)
    image.copy(tensors, Copier())
    image.wait()
    return image


def contents(image):
    return read_header(image.memory)


def by_safetensors(image):
    return safetensors.torch.load(image.memory.numpy().tobytes())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_each_kind_is_read_back_by_us_and_by_safetensors(dtype):
    tensors = {"a": tensor(dtype), "scalar": tensor(dtype, ()), "none": tensor(dtype, (0, 3)), "one": tensor(dtype, 1)}
    image = taken(tensors)
    assert all(same(contents(image)[name], value) for name, value in tensors.items())
    assert contents(image).keys() == tensors.keys()
    theirs = by_safetensors(image)
    assert theirs.keys() == tensors.keys() and all(same(theirs[name], value) for name, value in tensors.items())


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
some = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(lambda n: n != "__metadata__"),
    st.builds(tensor, st.sampled_from(list(DTYPES)), shapes, st.integers(0, 99)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=100)
@given(some)
def test_any_mixture_is_a_file_that_safetensors_reads(tensors):
    image = taken(tensors)
    theirs = by_safetensors(image)
    assert theirs.keys() == tensors.keys() and all(same(theirs[name], value) for name, value in tensors.items())
    assert all(same(contents(image)[name], value) for name, value in tensors.items())


def test_a_tensor_is_copied_whatever_its_strides_and_gradient():
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "t": base.t(),
        "step": torch.arange(10)[::3],
        "expanded": torch.ones(1).expand(4),
        "parameter": torch.nn.Parameter(base),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
    }
    found = contents(taken(tensors))
    assert all(same(found[name], value.detach().resolve_conj()) for name, value in tensors.items())


def test_the_same_memory_takes_the_next_state_of_the_same_layout():
    first, second = {"a": torch.zeros(3), "b": torch.zeros(2)}, {"a": torch.ones(3), "b": torch.full((2,), 5.0)}
    image = taken(first)
    memory = image.memory.data_ptr()
    assert image.fits(second)
    image.copy(second, Copier())
    assert image.memory.data_ptr() == memory and same(contents(image), second)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(3)},
        {"a": torch.zeros(3), "b": torch.zeros(3)},
        {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.float64)},
        {"b": torch.zeros(2), "a": torch.zeros(3)},
        {"a": torch.zeros(3), "c": torch.zeros(2)},
        {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1)},
        {"a": torch.zeros(3), "b": torch.zeros(1, 2)},
    ],
)
def test_another_layout_does_not_fit(other):
    assert not Image({"a": torch.zeros(3), "b": torch.zeros(2)}).fits(other)


def test_the_copy_does_not_change_with_what_was_copied():
    value = torch.zeros(3)
    image = taken({"a": value})
    value.fill_(1)
    assert contents(image)["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)])
def test_a_tensor_that_the_format_has_not_is_refused_by_its_name(value):
    with pytest.raises(TypeError, match=r"^tensor layer\.w: .* cannot be saved; make it dense and plain$"):
        Image({"layer.w": value})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_the_first_weight_that_is_not_finite_is_named(bad, dtype):
    tensors = {"good": torch.ones(4, dtype=dtype), "bad": torch.tensor([1.0, bad, 2.0]).to(dtype)}
    assert taken(tensors).first_not_finite(tensors) == "bad"
    assert taken(tensors).first_not_finite(["good"]) is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_looked_at_too(dtype):
    good, bad = torch.ones(2).to(dtype), torch.tensor([1.0, math.nan]).to(dtype)
    assert taken({"w": good}).first_not_finite(["w"]) is None
    assert taken({"w": bad}).first_not_finite(["w"]) == "w"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_whose_sum_is_too_large_are_finite(dtype):
    assert taken({"w": torch.full((4,), torch.finfo(dtype).max, dtype=dtype)}).first_not_finite(["w"]) is None


def test_infinities_that_cancel_each_other_are_found():
    assert taken({"w": torch.tensor([math.inf, -math.inf])}).first_not_finite(["w"]) == "w"


def test_whole_numbers_and_empty_weights_are_finite():
    tensors = {"i": torch.ones(2, dtype=torch.int64), "b": torch.ones(2, dtype=torch.bool), "e": torch.empty(0)}
    assert taken(tensors).first_not_finite(tensors) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"1234567", (99).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"\xff" * 40],
)
def test_what_is_no_such_file_is_refused(data):
    memory = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    with pytest.raises((ValueError, AttributeError)):
        read_header(memory)
