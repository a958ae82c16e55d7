"""The checksum of weights: one number for names, kinds and bits."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint.weights import weights_sha256

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
tensors = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4).to(dtype),
    shapes,
    st.sampled_from(
        [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    ),
    st.integers(0, 99),
)
weights = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), tensors, max_size=4)


def by_hand(mapping):
    digest = hashlib.sha256()
    for key in sorted(mapping, key=str.encode):
        tensor = mapping[key].contiguous()
        digest.update(key.encode("utf-8"))
        plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
        digest.update(plain.numpy().tobytes(order="C"))
    return digest.hexdigest()


@settings(max_examples=60)
@given(weights)
def test_the_checksum_is_that_of_names_and_bytes_in_order_of_names(mapping):
    assert weights_sha256(mapping) == by_hand(mapping)
    assert weights_sha256(dict(reversed(mapping.items()))) == weights_sha256(mapping)


def test_the_checksum_does_not_depend_on_strides_or_gradients():
    tensor = torch.arange(6.0).reshape(2, 3)
    strided = tensor.t().contiguous().t()
    assert not strided.is_contiguous()
    expected = weights_sha256({"w": tensor})
    assert weights_sha256({"w": strided}) == expected
    assert weights_sha256({"w": torch.nn.Parameter(tensor)}) == expected


def test_the_checksum_sees_one_bit_one_name_and_one_type():
    base = {"w": torch.ones(4, dtype=torch.bfloat16)}
    other = base["w"].clone()
    other.view(torch.int16)[2] ^= 1
    changed = ({"w": other}, {"v": base["w"]}, {"w": base["w"].float()})
    assert len({weights_sha256(mapping) for mapping in (base, *changed)}) == 4
