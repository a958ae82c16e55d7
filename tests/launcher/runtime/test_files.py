"""Files that a crash leaves whole: atomic replacement, and lines of JSON with a torn end."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.files import append_json_line, read_json_lines, write_atomic, write_json

law = settings(max_examples=40)
texts = st.text(st.characters(exclude_categories=["Cs"]))
records = st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts), max_size=4)


def test_write_atomic_makes_and_replaces_a_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"\x00two")
    assert path.read_bytes() == b"\x00two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_reader_that_holds_the_old_file_keeps_the_old_content(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"


def test_a_write_that_fails_half_way_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, b"old")
    script = (
        "import resource, sys; from pathlib import Path; from launcher.runtime.files import write_atomic;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_atomic(Path(sys.argv[1]), bytes(100_000))"
    )
    failed = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in failed.stderr
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_rename_that_fails_leaves_the_target_and_no_litter(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.is_dir()


def test_write_json_is_read_back_and_readable(tmp_path):
    value = {"name": "é", "steps": [1, 2], "loss": None}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert "é" in text


def test_lines_of_a_file_that_is_not_there_are_none(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []


@law
@given(st.lists(records, max_size=6))
def test_appended_records_come_back_in_order_a_line_each(written):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        for record in written:
            append_json_line(path, record)
        assert read_json_lines(path) == written
        assert (path.read_bytes() if written else b"").count(b"\n") == len(written)


@law
@given(st.lists(records, min_size=1, max_size=4), records, st.data())
def test_a_torn_last_line_is_passed_over_and_costs_no_other_record(written, later, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        for record in written:
            append_json_line(path, record)
        whole = path.read_bytes()
        last_line = whole.rfind(b"\n", 0, -1) + 1
        path.write_bytes(whole[: data.draw(st.integers(last_line, len(whole) - 2))])
        assert read_json_lines(path) == written[:-1]
        append_json_line(path, later)
        assert read_json_lines(path) == [*written[:-1], later]


def test_a_line_that_lacks_only_its_end_still_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}')
    append_json_line(path, {"b": 2})
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]


def test_lines_that_are_no_mappings_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n[1]\n\n3\nnot json\n\xff\xfe\n{"b": 2}\n')
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(("durable", "settled", "kinds"), [(True, True, "fd"), (True, False, "f"), (False, True, "")])
def test_what_is_synced_is_what_was_asked_for(tmp_path, monkeypatch, durable, settled, kinds):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append("fd"[stat.S_ISDIR(os.fstat(descriptor).st_mode)]))
    write_atomic(tmp_path / "a", b"x", durable=durable, settled=settled)
    assert "".join(synced) == kinds and (tmp_path / "a").read_bytes() == b"x"
