"""The CSV index: every record is found where csv.reader finds it, once for each version of the file."""

import csv
import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from vlm.data.csv_index import open_index

TEXT = st.text(
    st.one_of(st.sampled_from('",\n\r \t\0\ufeff;é😀ab'), st.characters(exclude_categories=["Cs"])), max_size=12
) | st.sampled_from(["", '"', '""', "\r\n", '",\r\n"', "\n\n"])


@st.composite
def csv_bytes(draw):
    """A file as csv.writer would write it, with what else occurs in the wild: BOM, blank lines, a cut last newline."""
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    width = draw(st.integers(2, 4))
    table = draw(st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=1, max_size=8))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    if newline == "\n" and any("\r" in field for row in table for field in row):
        quoting = csv.QUOTE_ALL  # csv.writer quotes a carriage return only where lines end with one
    written = []
    for row in table:
        record = io.StringIO()
        csv.writer(record, lineterminator=newline, quoting=quoting).writerow(row)
        written.append(newline * draw(st.integers(0, 2)) + record.getvalue())
    text = "".join(written)
    if draw(st.booleans()):
        text = text.removesuffix(newline)
    else:
        text += newline * draw(st.integers(0, 2))
    return (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + text.encode()


def read_by_reader(data):
    text = io.StringIO(data.decode("utf-8-sig"), newline="")
    return [row for row in csv.reader(text) if row]


def read_by_index(path, cache):
    index = open_index(path, cache)
    return [index.header, *(index.fields(i) for i in range(len(index)))]


def written(folder: Path, data: bytes) -> Path:
    path = folder / "data.csv"
    path.write_bytes(data)
    return path


def files_below(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@settings(deadline=None, max_examples=150)
@given(data=csv_bytes(), block=st.integers(3, 40) | st.just(1 << 20))
def test_rows_are_those_of_csv_reader_whatever_the_block_borders(tmp_path_factory, data, block):
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm.data.csv_index._BLOCK", block)
        assert read_by_index(written(folder, data), folder / "cache") == read_by_reader(data)


@pytest.mark.parametrize("block", range(3, 20))
def test_a_border_inside_a_crlf_a_doubled_quote_or_a_character_splits_no_row(tmp_path, monkeypatch, block):
    monkeypatch.setattr("vlm.data.csv_index._BLOCK", block)
    data = 'a,b\r\n"x ""y"" é\r\nz","",\r\n\r\n"😀","1\n2"\r\n'.replace('"",\r', '""\r').encode()
    assert read_by_index(written(tmp_path, data), tmp_path / "cache") == [
        ["a", "b"],
        ['x "y" é\r\nz', ""],
        ["😀", "1\n2"],
    ]


def test_a_byte_order_mark_counts_at_the_beginning_of_the_file_only(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.data.csv_index._BLOCK", 6)
    rows = [["a", "bb"], ["\ufeff", "\ufeffx\ufeff"], ["1", "\ufeff\ufeff"], ["2", "34"]]
    for before in range(6):  # each of the marks comes to stand at the beginning of a block
        rows[0][0] = "a" * (before + 1)
        data = "\ufeff" + "".join(",".join(row) + "\n" for row in rows)
        assert read_by_index(written(tmp_path, data.encode()), tmp_path / "cache") == rows


def test_rows_can_be_read_in_any_order(tmp_path):
    index = open_index(
        written(tmp_path, b"n,square\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(50))), tmp_path
    )
    assert [index.fields(i) for i in (49, 0, 7, 7)] == [["49", "2401"], ["0", "0"], ["7", "49"], ["7", "49"]]


def test_digest_is_that_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.data.csv_index._BLOCK", 5)
    data = b'\xef\xbb\xbfa,b\n1,"2\n3"\n\n4,5'
    assert open_index(written(tmp_path, data), tmp_path).digest == hashlib.sha256(data).hexdigest()


def test_a_row_with_other_than_the_headers_fields_is_given_as_it_is(tmp_path):
    index = open_index(written(tmp_path, b"a,b\n1\n1,2,3\n"), tmp_path)
    assert [index.fields(0), index.fields(1)] == [["1"], ["1", "2", "3"]]


def test_an_unchanged_file_is_not_indexed_again(tmp_path):
    path = written(tmp_path, b"a,b\n1,2\n")
    first = open_index(path, tmp_path / "cache")
    built = files_below(tmp_path / "cache")
    second = open_index(path, tmp_path / "cache")
    assert files_below(tmp_path / "cache") == built
    assert (second.header, second.digest, second.spans.tolist()) == (first.header, first.digest, first.spans.tolist())


@pytest.mark.parametrize("changed", [b"a,b\n1,2\n3,4\n", b"a,b\n1,3\n", b"c,d\n1,2\n"])
def test_a_changed_file_is_indexed_anew(tmp_path, changed):
    path = written(tmp_path, b"a,b\n1,2\n")
    assert read_by_index(path, tmp_path / "cache") == [["a", "b"], ["1", "2"]]
    other = tmp_path / "other.csv"
    other.write_bytes(changed)
    other.replace(path)
    assert read_by_index(path, tmp_path / "cache") == read_by_reader(changed)
    assert open_index(path, tmp_path / "cache").digest == hashlib.sha256(changed).hexdigest()


def test_a_file_appended_to_is_indexed_anew(tmp_path):
    path = written(tmp_path, b"a,b\n1,2\n")
    open_index(path, tmp_path / "cache")
    with path.open("ab") as file:
        file.write(b"3,4\n")
    assert read_by_index(path, tmp_path / "cache") == [["a", "b"], ["1", "2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\n\r\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b'a,b\n1,"2\n3,4\n', "never closed"),
        (b'a,b\n1,"2', "never closed"),
        (b"\xff\xfea,b\n1,2\n", "header cannot be read"),
        (b"a,b\r1,2\r3,4\r", "header cannot be read"),
    ],
)
def test_a_file_that_is_no_csv_is_refused_and_leaves_no_index(tmp_path, data, reason):
    path = written(tmp_path, data)
    with pytest.raises(UserError, match=reason) as caught:
        open_index(path, tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert [entry for entry in (tmp_path / "cache" / "index").iterdir() if entry.is_dir()] == []


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        open_index(tmp_path, tmp_path / "cache")
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file") as caught:
        open_index(tmp_path / "none.csv", tmp_path / "cache")
    assert str(tmp_path / "none.csv") in str(caught.value)


def test_a_missing_column_is_refused_and_the_present_ones_are_named(tmp_path):
    path = written(tmp_path, b"picture,text\n1,2\n")
    index = open_index(path, tmp_path)
    index.require_columns("picture", "text")
    with pytest.raises(UserError, match=r"no column 'caption'.*'picture', 'text'") as caught:
        index.require_columns("picture", "caption")
    assert str(path) in str(caught.value)


def test_a_header_without_rows_is_refused(tmp_path):
    path = written(tmp_path, b"a,b\n\n")
    with pytest.raises(UserError, match="no rows") as caught:
        open_index(path, tmp_path).require_columns("a")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"1,\xff", "byte 2 of the row is no UTF-8"),
        (b"1,\xed\xa0\x80", "lone surrogate"),
        (b'1,"2"3', "no CSV record"),
    ],
)
def test_a_row_that_is_no_record_says_why_and_harms_no_other(tmp_path, record, reason):
    index = open_index(written(tmp_path, b"a,b\n" + record + b"\n3,4\n"), tmp_path)
    with pytest.raises(ValueError, match=reason):
        index.fields(0)
    assert index.fields(1) == ["3", "4"]


@pytest.mark.parametrize(
    "records", [b'x,5" nail\ny,6" nail\n', b"x,1\ry,2\n"], ids=["bare quotes", "bare carriage return"]
)
def test_rows_that_run_into_each_other_are_refused_and_not_dropped(tmp_path, records):
    index = open_index(written(tmp_path, b"a,b\n" + records + b"z,3\n"), tmp_path)
    with pytest.raises(ValueError, match="it reads as 2, not one"):
        index.fields(0)
    assert index.fields(1) == ["z", "3"]


def test_a_field_longer_than_the_limit_is_refused(tmp_path, monkeypatch):
    index = open_index(written(tmp_path, b"a,b\n1," + b"x" * 100 + b"\n1," + b"x" * 101 + b"\n"), tmp_path)
    monkeypatch.setattr("vlm.data.csv_index.MAX_FIELD", 100)
    assert index.fields(0) == ["1", "x" * 100]
    with pytest.raises(ValueError, match="no CSV record"):
        index.fields(1)
    monkeypatch.undo()
    assert index.fields(1) == ["1", "x" * 101]


def test_a_file_that_changes_while_it_is_read_is_refused(data_csv, tmp_path):
    index = open_index(data_csv, tmp_path / "cache")
    index.require_unchanged()
    data_csv.write_bytes(data_csv.read_bytes().replace(b"number 3", b"NUMBER 3"))
    with pytest.raises(UserError, match="was changed while it was read"):
        index.require_unchanged()


def test_a_record_that_swallows_the_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.data.csv_index.MAX_RECORD", 50)
    path = tmp_path / "stray.csv"
    path.write_text('a,b\nx,5" nail\n' + "y,z\n" * 30 + 'x,6" nail\nlast,row\n')
    index = open_index(path, tmp_path / "cache")
    with pytest.raises(ValueError, match="more than 50: perhaps a stray quote"):
        index.fields(0)
