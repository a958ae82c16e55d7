"""A run's data as tensors: how captions become inputs and targets, and which data a config refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from tests.conftest import picture, write_csv
from vlm.data.cache import DecodedRows
from vlm.data.csv_index import open_index
from vlm.data.dataset import IGNORE, CaptionRows, data_file, open_data, open_unseen_pairs
from vlm.data.split import split_rows
from vlm.data.tokenizer import BEGIN, END, PAD, UNKNOWN, ByteTokenizer, CharTokenizer


@pytest.fixture
def csv_config(config):
    """``csv_config(path, "trainer.batch_size=2")``: the resolved config of a small model on a CSV file."""
    return lambda path, *overrides: config("data=csv", f"data.path={path}", *overrides)


def caption_rows(captions, tokenizer):
    """Rows with these captions and pictures that are their number."""
    texts = [caption.encode() for caption in captions]
    numbers = np.arange(len(captions), dtype=np.uint8)
    decoded = DecodedRows(
        images=np.broadcast_to(numbers[:, None, None, None], (len(captions), 3, 2, 2)).copy(),
        picture_ids=np.array([bytes([n] * 16) for n in numbers], "V16"),
        caption_bytes=memoryview(b"".join(texts)),
        caption_ends=np.cumsum([len(text) for text in texts]),
        caption_chars=np.array([len(caption) for caption in captions]),
        bad={},
    )
    return CaptionRows(decoded, tokenizer)


CAPTIONS = ["a cat", "é☕😀", "x", "two\nlines here", "a"]


def test_inputs_begin_and_are_padded_and_targets_end_and_are_ignored_behind():
    batch = caption_rows(["ab", "b"], CharTokenizer("ab")).batch(np.array([0, 1]))
    a, b = 4, 5
    assert batch.inputs.tolist() == [[BEGIN, a, b], [BEGIN, b, PAD]]
    assert batch.targets.tolist() == [[a, b, END], [b, END, IGNORE]]
    assert batch.images.tolist() == np.repeat([0, 1], 12).reshape(2, 3, 2, 2).tolist()
    assert batch.rows.tolist() == [0, 1]


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(0, len(CAPTIONS) - 1), min_size=1, max_size=8),
    tokenizer=st.sampled_from([ByteTokenizer(), CharTokenizer.of(CAPTIONS)]),
)
def test_every_sample_is_laid_out_as_it_would_be_alone(rows, tokenizer):
    all_rows = caption_rows(CAPTIONS, tokenizer)
    batch = all_rows.batch(np.array(rows))
    tokens = [tokenizer.encode(CAPTIONS[row]).tolist() for row in rows]
    longest = max(map(len, tokens))
    assert batch.inputs.tolist() == [[BEGIN, *t, *[PAD] * (longest - len(t))] for t in tokens]
    assert batch.targets.tolist() == [[*t, END, *[IGNORE] * (longest - len(t))] for t in tokens]
    assert batch.inputs.dtype == batch.targets.dtype == batch.rows.dtype == torch.int64
    assert batch.images.dtype == torch.uint8 and batch.images[:, 0, 0, 0].tolist() == rows
    assert all_rows.n_targets(np.array(rows)) == int((batch.targets >= 0).sum())
    assert all_rows.lengths(np.array(rows)).tolist() == [len(t) for t in tokens]
    assert len(batch) == len(rows)


def test_other_pictures_can_stand_in_for_a_batchs_own():
    other = np.full((2, 3, 2, 2), 99, np.uint8)
    batch = caption_rows(CAPTIONS, ByteTokenizer()).batch(np.array([1, 3]), other)
    assert (batch.images == 99).all() and batch.rows.tolist() == [1, 3]


def test_a_batch_moved_to_a_device_is_the_same_batch():
    batch = caption_rows(CAPTIONS, ByteTokenizer()).batch(np.array([1, 3]))
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images) and torch.equal(moved.inputs, batch.inputs)
    assert torch.equal(moved.targets, batch.targets) and torch.equal(moved.rows, batch.rows)


def test_csv_data_opens_with_pictures_captions_and_split(csv_config, data_csv):
    config = csv_config(data_csv, "data.val_fraction=0.25")
    data = open_data(config)
    assert (len(data.train), len(data.val)) == (9, 3)
    assert sorted([*data.train.tolist(), *data.val.tolist()]) == list(range(12))
    batch = data.rows.batch(data.train)
    assert batch.images.shape == (9, 3, 16, 16)
    captions = [data.tokenizer.decode(row.tolist()) for row in batch.inputs]
    assert captions == [f"picture number {row}" for row in data.train]


def test_the_split_is_that_of_the_config(csv_config, data_csv):
    config = csv_config(data_csv, "data.val_fraction=0.5", "data.split_by=caption", "data.split_seed=3")
    data = open_data(config)
    train, val = split_rows(data.rows.decoded, 0.5, "caption", 3)
    assert data.train.tolist() == train.tolist() and data.val.tolist() == val.tolist()


def test_the_tokenizer_knows_training_captions_only(csv_config, tmp_path):
    letters = "abcdefghijkl"
    path = write_csv(tmp_path / "data.csv", [(picture(i), letter) for i, letter in enumerate(letters)])
    data = open_data(csv_config(path, "data.val_fraction=0.25"))
    assert data.tokenizer.to_json()["characters"] == "".join(letters[row] for row in data.train)
    assert data.rows.batch(data.val).inputs[:, 1].tolist() == [UNKNOWN] * 3


def test_a_tokenizer_given_is_used(csv_config, data_csv):
    given_one = CharTokenizer("picture numbers0123456789")
    assert open_data(csv_config(data_csv), given_one).tokenizer is given_one


def test_bytes_are_used_where_the_config_says_so(csv_config, data_csv):
    assert isinstance(open_data(csv_config(data_csv, "tokenizer=byte")).tokenizer, ByteTokenizer)


def test_bad_rows_are_left_out_with_skip_and_stop_the_run_without(csv_config, tmp_path):
    rows = [(picture(i), f"caption {i}") for i in range(12)]
    rows[4] = ("?", "bad")
    path = write_csv(tmp_path / "data.csv", rows)
    data = open_data(csv_config(path, "data.on_error=skip"))
    assert sorted([*data.train.tolist(), *data.val.tolist()]) == [i for i in range(12) if i != 4]
    with pytest.raises(UserError, match="row 5: the picture is no base64"):
        open_data(csv_config(path))


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("side", ["train", "val"])
def test_a_caption_too_long_for_the_model_is_refused_with_its_row(csv_config, tmp_path, kind, side):
    rows = [(picture(i), f"caption {i}") for i in range(12)]
    path = write_csv(tmp_path / "data.csv", rows)
    config = csv_config(path, f"tokenizer={kind}", "data.val_fraction=0.25")
    data = open_data(config)
    chosen = int(getattr(data, side)[0])
    room = config.model.max_text - 1  # the begin token takes a place
    letter = "é" if kind == "char" else "e"
    rows[chosen] = (rows[chosen][0], letter * room)
    write_csv(path, rows)
    fits = open_data(csv_config(path, f"tokenizer={kind}", "data.val_fraction=0.25"))
    assert fits.rows.batch(np.array([chosen])).inputs.shape == (1, config.model.max_text)
    rows[chosen] = (rows[chosen][0], letter * (room + 3))
    write_csv(path, rows)
    with pytest.raises(UserError, match=f"row {chosen + 1}: .*raise model.positions by at least 3"):
        open_data(csv_config(path, f"tokenizer={kind}", "data.val_fraction=0.25"))


def test_a_caption_too_long_is_no_matter_in_a_row_left_out(csv_config, tmp_path):
    rows = [(picture(i), f"caption {i}") for i in range(12)]
    rows[4] = ("?", "long" * 100)
    path = write_csv(tmp_path / "data.csv", rows)
    assert len(open_data(csv_config(path, "data.on_error=skip", "data.val_fraction=0")).train) == 11


def test_a_batch_larger_than_the_training_rows_is_refused(csv_config, data_csv):
    assert len(open_data(csv_config(data_csv, "data.val_fraction=0.25", "trainer.batch_size=9")).train) == 9
    with pytest.raises(UserError, match=r"trainer.batch_size=10 is larger .*9 rows to train on, 3 to validate"):
        open_data(csv_config(data_csv, "data.val_fraction=0.25", "trainer.batch_size=10"))


def test_a_batch_larger_than_the_file_is_refused_when_planned(csv_config, data_csv):
    with pytest.raises(UserError, match=r"trainer.batch_size=13 is larger .*12 rows"):
        csv_config(data_csv, "trainer.batch_size=13")


def test_a_file_changed_since_the_run_was_planned_is_refused(csv_config, data_csv):
    config = csv_config(data_csv)
    digest = open_index(data_csv, data_csv.parent).digest
    assert config.data.digest == digest
    write_csv(data_csv, [(picture(i), f"picture number {i}!") for i in range(12)])
    with pytest.raises(UserError, match=f"has changed since the run was planned .*was {digest}") as caught:
        open_data(config)
    assert str(data_csv) in str(caught.value)


def test_a_file_moved_but_not_changed_is_taken(csv_config, data_csv, tmp_path):
    config = csv_config(data_csv)
    moved = data_csv.rename(tmp_path / "moved.csv")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(moved)))
    assert len(open_data(config).train) == 11


@pytest.mark.parametrize("column", ["image_column", "caption_column"])
def test_a_column_that_is_not_there_is_refused(csv_config, data_csv, column):
    config = csv_config(data_csv)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **{column: "none"}))
    with pytest.raises(UserError, match="no column 'none'"):
        open_data(config)


def test_rendered_scenes_open_as_data(config):
    chosen = config("data.count=40", "data.val_fraction=0.2")
    data = open_data(chosen)
    assert len(data.train) + len(data.val) == 40
    seen = {data.rows.decoded.caption(int(row)) for row in data.train}
    assert not seen & {data.rows.decoded.caption(int(row)) for row in data.val}
    assert data.rows.batch(data.train[:2]).images.shape == (2, 3, 16, 16)
    assert data_file(chosen.data).name == "scenes.csv"


def test_unseen_pairs_open_with_the_models_tokenizer_and_none_without(config):
    chosen = config("data.count=40")
    tokenizer = ByteTokenizer()
    rows = open_unseen_pairs(chosen.data, 24, tokenizer)
    assert len(rows.decoded) == 2 and rows.tokenizer is tokenizer
    assert rows.batch(np.arange(2)).images.shape == (2, 3, 24, 24)
    assert open_unseen_pairs(config("data.unseen_pairs=0").data, 24, tokenizer) is None
