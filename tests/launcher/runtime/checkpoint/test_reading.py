"""Reading a checkpoint: no damage to any file of it goes unnoticed, and nothing in it is ever run."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import shutil

import pytest
import torch

from launcher.runtime.checkpoint.manifest import NAME, Manifest, xxh3
from launcher.runtime.checkpoint.reading import load, read, tensors_file, values_file
from launcher.runtime.errors import UserError
from tests.launcher.runtime.saving import DAMAGES, flip, make_saver, same, save, state

FILES = (NAME, "model.safetensors", "extra.safetensors", "rank0000.json")
STATE = state(3) | {"extra": {"t": torch.tensor([1.5, float("nan")])}, "plain": (1, b"x", None)}
FLIPS = 150


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save(make_saver(tmp_path_factory.mktemp("run")), 3, STATE)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / original.name)


def reseal(folder, name, data=None):
    """Put ``data`` in place of a file, and into the manifest what it is now."""
    if data is not None:
        (folder / name).write_bytes(data)
    manifest = Manifest.read(folder)
    data = (folder / name).read_bytes()
    entry = {"name": name, "bytes": len(data), "xxh3": xxh3(data)}
    files = tuple(entry if e["name"] == name else e for e in manifest.files)
    (folder / NAME).write_bytes(dataclasses.replace(manifest, files=files).to_bytes())


def test_a_whole_one_comes_back_with_exactly_these_files(folder):
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert same(load(folder), STATE)


def test_what_is_read_may_be_changed_without_reaching_the_files(folder):
    found = load(folder)
    found["model"]["w"].zero_()
    assert same(load(folder), STATE)


def test_what_is_read_outlives_its_files(folder):
    found = load(folder)
    shutil.rmtree(folder)
    assert same(found, STATE)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_noticed(folder, name):
    path = folder / name
    data = path.read_bytes()
    drawn = random.Random(name)
    places = range(len(data)) if len(data) <= FLIPS else drawn.sample(range(len(data)), FLIPS)
    noticed = 0
    for index in places:
        flip(path, index, drawn.randrange(8))
        try:
            assert same(load(folder), STATE) and name == NAME  # white space
        except UserError as error:
            assert name in str(error)
            noticed += 1
        path.write_bytes(data)
    assert noticed > (0.5 if name == NAME else 0.999) * len(places)
    assert same(load(folder), STATE)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_is_short_long_empty_or_missing_is_named(folder, name, damage):
    damage(folder / name)
    with pytest.raises(UserError, match=rf"^checkpoint .*{folder.name}: {name} is (damaged|missing)"):
        load(folder)


def test_a_folder_in_place_of_a_file_is_told(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(folder)


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.mark.parametrize("known", [True, False], ids=["in the manifest", "not in it"])
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_bomb_in_place_of_a_file_is_refused_and_not_run(folder, tmp_path, name, known):
    canary = tmp_path / "canary"
    data = pickle.dumps(Bomb(canary))
    pickle.loads(data)
    assert canary.exists(), "the bomb is a dud, and the test with it"
    canary.rmdir()
    if known and name != NAME:
        reseal(folder, name, data)
    else:
        (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=r"^checkpoint "):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    "values",
    [
        [],
        {},
        {"state": {}},
        {"state": [], "files": {}},
        {"state": {"a": {"tensor": "w"}}, "files": {}},
        {"state": {"model": {"tensor": "none"}}, "files": {"model": "model.safetensors"}},
        {"state": {"model": {"tensor": "w"}}, "files": {"model": "gone.safetensors"}},
        {"state": {"model": {"tensor": "w"}}, "files": {"model": "../model.safetensors"}},
        {"state": {"model": {"tensor": "w"}}, "files": {"model": "rank0000.json"}},
        {"state": {"model": {"tensor": "w"}}, "files": {"model": 3}},
        {"state": {"model": {"tensor": "w"}}, "files": {"model": []}},
        {"state": {"model": {"tensor": []}}, "files": {"model": "model.safetensors"}},
        {"state": {"model": {"code": "x"}}, "files": {}},
        {"state": {"model": {"dict": [[{"dict": []}, 1]]}}, "files": {}},
        {"state": {"model": {"bytes": "zz"}}, "files": {}},
    ],
    ids=range(15),
)
def test_values_that_are_no_state_are_refused_though_their_checksum_is_right(folder, values):
    reseal(folder, "rank0000.json", json.dumps(values).encode())
    with pytest.raises(UserError, match=r"^checkpoint "):
        load(folder)


def test_values_nested_too_deep_are_refused(folder):
    reseal(folder, "rank0000.json", b"[" * 10**5)
    with pytest.raises(UserError, match="holds no state"):
        load(folder)


@pytest.mark.parametrize("offsets", [[0, 1], [0, 10**9], [-8, 0], ["a", "b"], [0], None])
def test_a_header_that_lies_is_refused_though_its_checksum_is_right(folder, offsets):
    header = json.dumps({name: {"dtype": "F32", "shape": [3, 2], "data_offsets": offsets} for name in "wb"}).encode()
    reseal(folder, "model.safetensors", len(header).to_bytes(8, "little") + header + b"\0" * 32)
    with pytest.raises(UserError, match=r"cannot be read"):
        load(folder)


def test_a_rank_that_was_not_there_gets_the_first_ones_state(folder):
    assert same(load(folder, rank=7), STATE)


def test_files_of_other_ranks_are_checked_where_asked(folder):
    manifest = Manifest.read(folder)
    (folder / "rank0001.json").write_bytes(b"{}")
    more = {"name": "rank0001.json", "bytes": 2, "xxh3": xxh3(b"other")}
    manifest = dataclasses.replace(manifest, files=(*manifest.files, more))
    assert same(read(folder, manifest, 0), STATE)
    with pytest.raises(UserError, match=r"rank0001\.json is damaged"):
        read(folder, manifest, 0, all_files=True)


def test_without_any_values_in_the_manifest_there_is_no_state(folder):
    manifest = dataclasses.replace(Manifest.read(folder), files=())
    with pytest.raises(UserError, match=r"rank0000\.json is not in its manifest"):
        read(folder, manifest, 0)


def test_names_of_files():
    assert (values_file(3), tensors_file("model", 0)) == ("rank0003.json", "model.safetensors")
    assert tensors_file("model", 12) == "model.rank0012.safetensors"
