"""MANIFEST.json: what it says comes back, and what is changed in it by a bit is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoint.manifest import FORMAT, NAME, Manifest, xxh3
from launcher.runtime.errors import UserError

FILE = {"name": "model.safetensors", "bytes": 3, "xxh3": xxh3(b"abc")}
MANIFEST = Manifest(
    kind="step", step=7, run_id="abc", attempt=2, token="t", world_size=2, files=(FILE,),
    fingerprint={"torch": "2.6", "threads": 1},
)  # fmt: skip


def sealed(**changes):
    """A manifest's bytes with ``changes`` and a checksum that is right."""
    body = json.loads(MANIFEST.to_bytes()) | changes
    del body["checksum"]
    body["checksum"] = xxh3(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    return json.dumps(body).encode()


@settings(max_examples=50)
@given(
    st.builds(
        Manifest,
        kind=st.sampled_from(["step", "best", "final"]),
        step=st.integers(0, 10**12),
        run_id=st.text(max_size=4),
        attempt=st.integers(1, 10**5),
        token=st.text(max_size=3),
        world_size=st.integers(1, 99),
        files=st.lists(st.just(FILE), max_size=2).map(tuple),
        fingerprint=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=2), max_size=2),
        metric=st.none() | st.floats(allow_nan=False),
    )
)
def test_what_it_says_comes_back(tmp_path_factory, manifest):
    folder = tmp_path_factory.mktemp("m")
    (folder / NAME).write_bytes(manifest.to_bytes())
    assert Manifest.read(folder) == manifest
    assert Manifest.read(folder).checksum == manifest.checksum


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path):
    data = MANIFEST.to_bytes()
    for index in range(len(data)):
        for bit in (0, 4):
            (tmp_path / NAME).write_bytes(data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :])
            try:
                found = Manifest.read(tmp_path)
            except UserError as error:
                assert f"checkpoint {tmp_path}: its {NAME} is damaged" in str(error)
            else:
                assert found == MANIFEST and chr(data[index]).isspace()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"files": []}', '{"files": 3}', '{"files": [{}]}', "no json", "\xff", "[" * 10**5],
    ids=range(10),
)
def test_another_form_is_damaged(tmp_path, text):
    (tmp_path / NAME).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"its MANIFEST\.json is damaged"):
        Manifest.read(tmp_path)


def test_a_missing_one_is_told(tmp_path):
    with pytest.raises(UserError, match=r"its MANIFEST\.json is missing$"):
        Manifest.read(tmp_path)


def test_a_folder_in_its_place_is_damage(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match=r"its MANIFEST\.json is damaged"):
        Manifest.read(tmp_path)


def test_another_format_is_named_whatever_its_checksum(tmp_path):
    for data in (sealed(format=FORMAT + 1), b'{"format": 1, "files": []}'):
        (tmp_path / NAME).write_bytes(data)
        with pytest.raises(UserError, match=rf"\(format \d, this version reads {FORMAT}\)$"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"name": "a"},
        FILE | {"name": "../a"},
        FILE | {"name": "a/b"},
        FILE | {"name": "/etc/passwd"},
        FILE | {"name": ".."},
        FILE | {"name": ".hidden"},
        FILE | {"name": ""},
        FILE | {"name": "a\0"},
        FILE | {"name": 3},
        FILE | {"more": 1},
        "text",
        3,
    ],
)
def test_an_entry_that_names_no_file_of_the_folder_is_refused_with_a_valid_checksum_too(tmp_path, entry):
    (tmp_path / NAME).write_bytes(sealed(files=[entry]))
    with pytest.raises(UserError, match=r"its MANIFEST\.json is damaged"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("changes", [{"more": 1}, {"files": 3}, {"files": None}])
def test_keys_of_another_kind_are_refused(tmp_path, changes):
    (tmp_path / NAME).write_bytes(sealed(**changes))
    with pytest.raises(UserError, match=r"its MANIFEST\.json is damaged"):
        Manifest.read(tmp_path)


def test_two_checkpoints_have_two_checksums():
    others = [{"step": 8}, {"attempt": 3}, {"token": "u"}, {"metric": 0.5}, {"metric": -math.inf}, {"files": ()}]
    checksums = {Manifest(**vars(MANIFEST) | changes).checksum for changes in [{}, *others]}
    assert len(checksums) == len(others) + 1
