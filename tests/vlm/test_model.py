"""The model: seemore to the letter, the modern options, causality, no thrown-away work that changes results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sweeps.bench.plain import PlainSeemore
from tests.conftest import compose_values
from tests.vlm import reference
from vlm.config import ModelConfig
from vlm.convert import config_of, from_seed
from vlm.data.dataset import IGNORE
from vlm.model.block import SelfAttention, attend
from vlm.model.generate import generate
from vlm.model.vlm import VisionLanguageModel, token_loss_sum

VOCAB = 20
SIZES = {"vocab": VOCAB, "width": 32, "vision": 64, "layers": 3, "blocks": 2, "heads": 4, "img": 32, "patch": 8}


def named(name: str, **changes) -> ModelConfig:
    return replace(ModelConfig(**compose_values(f"model={name}")["model"]), **changes)


def batch(config: ModelConfig, length: int = 9, vocab: int = VOCAB):
    drawn = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (3, 3, config.img_size, config.img_size), generator=drawn, dtype=torch.uint8)
    return images, torch.randint(0, vocab, (3, length), generator=drawn)


@pytest.fixture
def seed_weights():
    return reference.random_weights(**SIZES, positions=50)


def test_seemore_gives_the_logits_of_an_independent_implementation(seed_weights):
    config = config_of(seed_weights)
    model = VisionLanguageModel(config, VOCAB, "half").eval()
    model.load_state_dict(from_seed(seed_weights, "reference"))
    images, tokens = batch(config)
    expected = reference.logits(seed_weights, images / 127.5 - 1, tokens)[:, 1:]
    assert (model(images, tokens) - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)


def test_the_benchmarks_plain_model_is_the_same_architecture(seed_weights):
    config = config_of(seed_weights)
    plain = PlainSeemore(config, VOCAB).eval()
    plain.load_state_dict(seed_weights)
    images, tokens = batch(config)
    expected = reference.logits(seed_weights, images / 127.5 - 1, tokens)
    torch.testing.assert_close(plain(images / 127.5 - 1, tokens), expected, rtol=1e-5, atol=1e-5)


def test_seemore_at_its_own_sizes_counts_what_the_seeds_count():
    plain = PlainSeemore(named("seemore"), 100).state_dict()
    assert len(plain) == 390 and sum(t.numel() for t in plain.values()) == 12_916_708
    model = VisionLanguageModel(named("seemore"), 100, "half")
    assert sum(p.numel() for p in model.parameters()) == 12_916_708
    assert config_of(plain) == named("seemore")


def test_tiny_and_small_have_the_sizes_that_are_promised():
    sizes = {
        n: sum(p.numel() for p in VisionLanguageModel(named(n), 100, "half").parameters()) for n in ("tiny", "small")
    }
    assert 0.4e6 < sizes["tiny"] < 0.7e6 and 25e6 < sizes["small"] < 35e6


def test_imagenet_normalisation_is_taken_off_the_pixels(seed_weights):
    config = config_of(seed_weights)
    model = VisionLanguageModel(config, VOCAB, "imagenet").eval()
    model.load_state_dict(from_seed(seed_weights, "reference"))
    images, tokens = batch(config)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = reference.logits(seed_weights, (images / 255 - mean) / std, tokens)[:, 1:]
    torch.testing.assert_close(model(images, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "seemore"])
def test_a_token_sees_no_later_one(name):
    config = named(name, dropout=0.0)
    model = VisionLanguageModel(config, VOCAB, "half").eval()
    images, tokens = batch(config)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    before, after = model(images, tokens), model(images, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("name", ["tiny", "seemore"])
def test_every_token_sees_the_picture(name):
    config = named(name, dropout=0.0)
    model = VisionLanguageModel(config, VOCAB, "half").eval()
    images, tokens = batch(config)
    assert not torch.allclose(model(images, tokens)[:, 0], model(255 - images, tokens)[:, 0])


@pytest.mark.parametrize("name", ["tiny", "seemore"])
def test_every_parameter_gets_a_gradient(name):
    config = named(name)
    model = VisionLanguageModel(config, VOCAB, "half")
    images, tokens = batch(config)
    token_loss_sum(model(images, tokens), tokens).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []


def test_tied_weights_are_one_matrix():
    model = VisionLanguageModel(named("tiny"), VOCAB, "half")
    assert model.decoder.head.weight is model.decoder.tokens.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_softmax_of_scaled_scores(dtype):
    q, k, v = (torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3))
    scores = (q.double() @ k.double().transpose(2, 3)) * 0.3
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
    expected = (scores.softmax(-1) @ v.double()).to(dtype)
    actual = attend(q, k, v, causal=True, scale=0.3, dropout=0.0)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_the_first_query_alone_gives_the_first_output():
    attention = SelfAttention(16, 4, causal=False, scale=0.5, dropout=0.0)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(attention(x, queries=1), attention(x)[:, :1])


def test_dropout_acts_in_training_only():
    config = named("seemore", dropout=0.5)
    model = VisionLanguageModel(config, VOCAB, "half")
    images, tokens = batch(config)
    assert not torch.allclose(model(images, tokens), model(images, tokens))
    model.eval()
    assert torch.equal(model(images, tokens), model(images, tokens))


def test_loss_sums_nats_over_targets_only():
    logits = torch.zeros(2, 3, VOCAB)
    targets = torch.tensor([[1, 2, IGNORE], [4, IGNORE, IGNORE]])
    assert float(token_loss_sum(logits, targets)) == pytest.approx(3 * torch.tensor(float(VOCAB)).log().item())


class Alphabet:
    """A tokenizer whose captions are token numbers, with 0 as begin and 1 as end."""

    end = 1
    unwritten = (0,)
    vocab_size = VOCAB

    def start(self, prompt):
        return torch.tensor([0, *map(int, prompt.split())]).numpy()

    def decode(self, tokens):
        return "".join(f" {t}" for t in tokens)


@pytest.mark.parametrize("name", ["tiny", "seemore"])
@pytest.mark.parametrize("prompt", ["", "5 7"])
def test_generation_with_a_cache_writes_what_the_whole_model_would(name, prompt):
    torch.manual_seed(3)
    config = named(name, positions=named(name).n_image_tokens + 16)
    model = VisionLanguageModel(config, VOCAB, "half").eval()
    torch.nn.init.normal_(model.decoder.tokens.weight)
    images, _ = batch(config)
    expected = []
    for image in images[:, None]:
        tokens = [0, *map(int, prompt.split())]
        while len(tokens) <= config.max_text:
            logits = model(image, torch.tensor([tokens]))[0, -1]
            logits[0] = -torch.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] == 1:
                break
        expected.append("".join(f" {t}" for t in tokens[1:] if t != 1).removeprefix(" " + prompt if prompt else ""))
    assert [c.removeprefix(prompt) for c in generate(model, Alphabet(), images, prompt=prompt)] == expected


def test_generation_stops_at_max_tokens_and_leaves_the_mode_as_it_was():
    config = named("tiny")
    model = VisionLanguageModel(config, VOCAB, "half").train()
    images, _ = batch(config)
    captions = generate(model, Alphabet(), images, max_tokens=4)
    assert all(len(c.split()) <= 4 for c in captions) and model.training


def test_drawing_is_repeatable_and_top_1_is_greedy():
    config = named("tiny")
    model = VisionLanguageModel(config, VOCAB, "half").eval()
    images, _ = batch(config)

    def drawn(**options):
        seeded = torch.Generator().manual_seed(5)
        return generate(model, Alphabet(), images, max_tokens=12, generator=seeded, **options)

    assert drawn(temperature=1.0) == drawn(temperature=1.0)
    assert drawn(temperature=5.0, top_k=1) == drawn()
