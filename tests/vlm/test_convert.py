"""A seed's checkpoint under our names."""

from __future__ import annotations

import pytest
import torch

from launcher.runtime.errors import UserError
from tests.vlm import reference
from vlm.convert import config_of, from_seed
from vlm.model.vlm import VisionLanguageModel

SIZES = {
    "vocab": 9,
    "width": 16,
    "vision": 32,
    "layers": 2,
    "blocks": 1,
    "heads": 2,
    "img": 16,
    "patch": 8,
    "positions": 30,
}


@pytest.fixture
def weights():
    return reference.random_weights(**SIZES)


def test_every_number_finds_its_place(weights):
    ours = from_seed(weights, "seed.pth")
    wanted = VisionLanguageModel(config_of(weights), 9, "half").state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in wanted.items()}
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in weights.values())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_and_mask_buffers_are_taken_off(weights, prefix):
    wrapped = {prefix + n: t for n, t in weights.items()}
    wrapped[f"{prefix}decoder.blocks.0.attn.heads.0.tril"] = torch.ones(4, 4)
    plain, ours = from_seed(weights, "a"), from_seed(wrapped, "b")
    assert plain.keys() == ours.keys() and all(torch.equal(plain[n], ours[n]) for n in plain)
    assert config_of(wrapped) == config_of(weights)


def test_the_state_dict_given_is_left_as_it_was(weights):
    names = set(weights)
    from_seed(weights, "a")
    assert set(weights) == names


@pytest.mark.parametrize("name", ["decoder.lm_head.bias", "vision_encoder.blocks.0.ffn.2.weight"])
def test_a_missing_parameter_is_named(weights, name):
    del weights[name]
    with pytest.raises(UserError, match=rf"seed\.pth: is no seemore checkpoint: it has no .*{name}"):
        from_seed(weights, "seed.pth")


def test_a_block_without_heads_is_named(weights):
    without = {n: t for n, t in weights.items() if ".attn.heads." not in n}
    with pytest.raises(UserError, match=r"heads\.0\.query\.weight"):
        from_seed(without, "seed.pth")


def test_an_unknown_parameter_is_named(weights):
    weights["decoder.extra.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=r"unknown parameter decoder\.extra\.weight"):
        from_seed(weights, "seed.pth")
