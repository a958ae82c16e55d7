"""What a run is predicted to leave, against what the model has and what real runs leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint import saver
from launcher.submission.footprint import Space, kind_of
from tests.conftest import PHOTOS
from tests.vlm.test_model import named
from vlm.config import ModelConfig
from vlm.data.dataset import open_data
from vlm.footprint import parameter_sizes, vocabulary
from vlm.model.vlm import VisionLanguageModel
from vlm.optim import make_optimizer


def sizes_of(config: ModelConfig, vocab: int) -> list[int]:
    with torch.device("meta"):
        return sorted(p.numel() for p in VisionLanguageModel(config, vocab, "half").parameters())


@pytest.mark.parametrize("name", ["tiny", "small", "seemore"])
def test_every_parameter_of_the_named_models_is_counted(name):
    assert sorted(parameter_sizes(named(name), 53)) == sizes_of(named(name), 53)


@given(
    shape=st.fixed_dictionaries(
        {
            "n_head": st.just(2), "n_embd": st.sampled_from([2, 6, 10]), "image_embed_dim": st.sampled_from([4, 6]),
            "n_layer": st.integers(1, 3), "n_blocks": st.integers(1, 3), "img_size": st.sampled_from([8, 16]),
            "patch_size": st.sampled_from([4, 8]), "positions": st.integers(30, 40), "tie_weights": st.booleans(),
            "image_tokens": st.sampled_from(["cls", "patches"]), "norm_residual": st.booleans(),
        }
    ),
    vocab=st.integers(5, 40),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_parameter_of_any_model_is_counted(shape, vocab):
    config = replace(named("tiny"), **shape)
    assert sorted(parameter_sizes(config, vocab)) == sizes_of(config, vocab)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_weights_and_optimizer_are_those_of_the_tensors(config, kind, tied):
    run = config(f"optim={kind}", f"model.tie_weights={tied}")
    model = VisionLanguageModel(run.model, vocabulary(run), "half")
    optimizer = make_optimizer(model, run.optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    moments = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
    said, n_tensors = run.footprint(), len(list(model.parameters()))
    assert 0 < said.weights_bytes - weights < 130 * (n_tensors + 1)  # a header for each tensor
    assert 0 < said.optimizer_bytes - moments < 3 * 130 * n_tensors


@pytest.mark.parametrize("words", [("tokenizer=char",), ("tokenizer=byte",), ("data.sizes=[small,large]",)])
def test_the_vocabulary_is_that_of_the_captions(config, words):
    run = config(*words, "data.count=300")
    assert vocabulary(run) == open_data(run).tokenizer.vocab_size


def test_the_vocabulary_of_a_file_is_that_of_its_captions(config):
    run = config("data=csv", f"data.path={PHOTOS}", "trainer.batch_size=2", "model.positions=2000")
    assert vocabulary(run) == pytest.approx(open_data(run).tokenizer.vocab_size, abs=4)


@pytest.mark.parametrize(
    ("words", "steps", "records", "validations"),
    [
        (("trainer.max_steps=10", "trainer.log_every=3", "trainer.val_every=5"), 10, 4, 2),
        (("trainer.max_steps=10", "trainer.log_every=20", "trainer.val_every=null"), 10, 1, 1),
        (("trainer.max_steps=null", "trainer.epochs=2", "trainer.batch_size=7", "data.val_fraction=0"), 14, 2, 0),
    ],
)
def test_how_often_what_is_due(config, words, steps, records, validations):
    said = config("data.count=48", "trainer.log_every=10", *words).footprint()
    assert (said.steps, said.records, said.validations) == (steps, records, validations)


def taken(folder: Path) -> Space:
    """What lies below ``folder``, itself counted, as ``ls`` says: a file of two names twice."""
    paths = [folder, *folder.rglob("*")]
    return Space(sum(path.lstat().st_size for path in paths if path.is_file()), len(paths))


@pytest.fixture
def fullest(monkeypatch):
    """The moments before something of a run is removed: it takes most then."""
    seen: list[Space] = []
    remove = saver.remove

    def spied(rundir, checkpoint):
        seen.append(taken(rundir.path))
        remove(rundir, checkpoint)

    monkeypatch.setattr(saver, "remove", spied)
    return seen


@pytest.mark.parametrize(
    "words",
    [
        ("checkpoint.every_steps=2",),
        ("checkpoint.every_steps=2", "checkpoint.at_end=weights", "tracker=[csv,tensorboard]"),
        ("checkpoint.every_steps=2", "checkpoint.keep_every=4", "checkpoint.best=false", "tracker=none"),
        ("checkpoint=off", "trainer.log_samples=true", "trainer.captions=2", "tracker=[csv,tensorboard]"),
        ("checkpoint.every_steps=5", "checkpoint.keep_last=3", "data.val_fraction=0", "model.tie_weights=false"),
    ],
    ids=["state", "weights", "kept", "off", "uneven"],
)
def test_a_real_run_takes_what_was_predicted(train, fullest, words):
    plan, outcome = train("trainer.max_steps=12", "trainer.val_every=6", "trainer.log_every=1", *words)
    assert outcome.state == "COMPLETED"
    need, end = kind_of(plan).need(), taken(plan.rundir.path)
    most = max([*fullest, end], key=lambda space: space.bytes)
    for predicted, real in ((need.fullest, most), (need.end, end)):
        assert predicted.bytes == pytest.approx(real.bytes, rel=0.2, abs=30_000)
        assert predicted.files == pytest.approx(real.files, abs=5)
