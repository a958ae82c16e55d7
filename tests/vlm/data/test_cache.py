"""The cache of decoded rows: what Pillow decodes, built once and whole, or not at all."""

import base64
import io
import json
import logging
import multiprocessing
import resource
import signal
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from launcher.runtime.errors import UserError
from tests.conftest import PHOTOS, picture, write_csv
from vlm.data.cache import open_decoded
from vlm.data.csv_index import open_index

COLUMNS = ("b64string_images", "caption")
CAPTIONS = ["plain", "café e\u0301 ☕", "😀", "two\nlines", "a,b", " ends with spaces  ", "plain"]


def opened(path, cache, size=8, on_error="raise", columns=COLUMNS):
    return open_decoded(open_index(path, cache), *columns, size, on_error, cache)


def caches(cache):
    return sorted(entry.name for entry in (cache / "decoded").iterdir() if entry.is_dir())


def files_below(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def by_pillow(text, size):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(base64.b64decode(text)))).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


@pytest.fixture
def bad_csv(tmp_path):
    """Six rows; rows 3 and 5 cannot be used."""
    rows = [[picture(i), f"caption {i}"] for i in range(6)]
    rows[2][1] = "  "
    rows[4][0] = "no base64!"
    return write_csv(tmp_path / "bad.csv", rows)


def test_pictures_are_pixel_for_pixel_those_of_pillow(tmp_path):
    index = open_index(PHOTOS, tmp_path)
    decoded = opened(PHOTOS, tmp_path, size=40)
    assert decoded.images.shape == (len(index), 3, 40, 40) and decoded.images.dtype == np.uint8
    for row in range(len(index)):
        _, packed, caption = index.fields(row)
        assert np.array_equal(decoded.images[row], by_pillow(packed, 40)), f"row {row + 1}"
        assert decoded.caption(row) == unicodedata.normalize("NFC", caption)
    assert not decoded.bad


def test_many_rows_keep_their_order(tmp_path):
    pictures = [picture(i, (8, 8)) for i in range(150)]
    path = write_csv(tmp_path / "many.csv", [(text, f"number {i}") for i, text in enumerate(pictures)])
    decoded = opened(path, tmp_path)
    assert [decoded.caption(i) for i in range(len(decoded))] == [f"number {i}" for i in range(150)]
    assert np.array_equal(decoded.images, [by_pillow(text, 8) for text in pictures])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    path = write_csv(folder / "data.csv", [(picture(i % 3), caption) for i, caption in enumerate(CAPTIONS)])
    return opened(path, folder)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.integers(0, len(CAPTIONS) - 1), max_size=10))
def test_captions_of_any_rows_come_joined_with_their_sizes(captioned, rows):
    expected = [unicodedata.normalize("NFC", CAPTIONS[row]) for row in rows]
    chosen = np.array(rows, np.int64)
    assert captioned.captions(chosen) == "".join(expected)
    assert captioned.caption_sizes(chosen).tolist() == [len(text.encode()) for text in expected]
    assert captioned.caption_chars[chosen].tolist() == [len(text) for text in expected]


def test_picture_ids_are_equal_where_the_pictures_are(captioned):
    ids = captioned.picture_ids
    equal = [[bool(ids[a] == ids[b]) for a in range(len(CAPTIONS))] for b in range(len(CAPTIONS))]
    assert equal == [[a % 3 == b % 3 for a in range(len(CAPTIONS))] for b in range(len(CAPTIONS))]


def test_columns_are_found_by_name(tmp_path):
    path = write_csv(tmp_path / "data.csv", [("x", "good", picture(1)), ("y", "", picture(2))], ["n", "said", "seen"])
    decoded = opened(path, tmp_path, columns=("seen", "said"), on_error="skip")
    assert decoded.caption(0) == "good"
    assert np.array_equal(decoded.images[0], by_pillow(picture(1), 8))


def test_the_first_bad_row_is_named_with_its_reason_and_nothing_is_left_behind(tmp_path, bad_csv):
    with pytest.raises(UserError, match=r"bad.csv: row 3: the caption is empty .*data.on_error=skip") as caught:
        opened(bad_csv, tmp_path / "cache")
    assert str(bad_csv) in str(caught.value)
    assert caches(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"only one field", "has 1 fields, the header has 2"),
        (b"a,b,c", "has 3 fields, the header has 2"),
        (b"a,\xff", "no UTF-8"),
        (b'"a"b,c', "no CSV record"),
        (b",caption", "the picture is empty"),
        (base64.b64encode(b"GIF89a") + b",caption", "no readable"),
    ],
)
def test_each_kind_of_bad_row_is_named(tmp_path, line, reason):
    path = write_csv(tmp_path / "data.csv", [(picture(0), "good")])
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=f"row 2: .*{reason}"):
        opened(path, tmp_path / "cache")
    decoded = opened(path, tmp_path / "cache", on_error="skip")
    assert list(decoded.bad) == [1] and reason in decoded.bad[1]


def test_skip_leaves_bad_rows_out_and_lists_them(tmp_path, bad_csv, caplog):
    with caplog.at_level(logging.WARNING):
        decoded = opened(bad_csv, tmp_path / "cache", on_error="skip")
    assert sorted(decoded.bad) == [2, 4]
    assert decoded.bad[2] == "the caption is empty" and "no base64" in decoded.bad[4]
    assert len(decoded) == 6
    for row in (0, 1, 3, 5):
        assert decoded.caption(row) == f"caption {row}"
        assert np.array_equal(decoded.images[row], by_pillow(picture(row), 8))
    for row in (2, 4):
        assert decoded.caption(row) == "" and not decoded.images[row].any()
    assert "2 of 6 rows left out (row 3: the caption is empty; row 5: " in caplog.text


def test_a_cache_built_with_skip_still_raises_when_opened_with_raise(tmp_path, bad_csv):
    opened(bad_csv, tmp_path / "cache", on_error="skip")
    with pytest.raises(UserError, match="row 3: the caption is empty"):
        opened(bad_csv, tmp_path / "cache", on_error="raise")


def test_a_file_without_one_usable_row_is_refused_even_with_skip(tmp_path):
    path = write_csv(tmp_path / "data.csv", [("?", "a"), (picture(0), "")])
    for _ in range(2):  # when it is built, and when it is there
        with pytest.raises(
            UserError, match="none of its 2 rows can be used; row 1: the picture is no base64"
        ) as caught:
            opened(path, tmp_path / "cache", on_error="skip")
        assert str(path) in str(caught.value)


def test_a_cache_is_built_once(tmp_path, data_csv):
    first = opened(data_csv, tmp_path / "cache")
    built = files_below(tmp_path / "cache")
    second = opened(data_csv, tmp_path / "cache")
    assert files_below(tmp_path / "cache") == built
    assert np.array_equal(first.images, second.images)
    assert [first.caption(i) for i in range(12)] == [second.caption(i) for i in range(12)]
    assert np.array_equal(first.picture_ids, second.picture_ids)


def test_the_same_content_elsewhere_shares_the_cache(tmp_path, data_csv):
    opened(data_csv, tmp_path / "cache")
    copy = tmp_path / "copy.csv"
    copy.write_bytes(data_csv.read_bytes())
    opened(copy, tmp_path / "cache")
    assert len(caches(tmp_path / "cache")) == 1


def test_another_column_or_size_makes_another_cache(tmp_path):
    rows = [(picture(i), picture(i + 10), f"first {i}", f"second {i}") for i in range(3)]
    path = write_csv(tmp_path / "data.csv", rows, ["p", "q", "a", "b"])
    variants = [("p", "a", 8), ("q", "a", 8), ("p", "b", 8), ("p", "a", 16)]
    for number, (image, caption, size) in enumerate(variants, 1):
        decoded = opened(path, tmp_path / "cache", size, columns=(image, caption))
        assert len(caches(tmp_path / "cache")) == number
        assert np.array_equal(decoded.images[1], by_pillow(rows[1]["pq".index(image)], size))
        assert decoded.caption(1) == rows[1][2 + "ab".index(caption)]


def test_changed_content_makes_another_cache(tmp_path, data_csv):
    opened(data_csv, tmp_path / "cache")
    write_csv(data_csv, [(picture(77), "new")])
    decoded = opened(data_csv, tmp_path / "cache")
    assert len(caches(tmp_path / "cache")) == 2
    assert len(decoded) == 1 and decoded.caption(0) == "new"


def _build_at_once(path, cache, barrier, report):
    barrier.wait(60)
    decoded = opened(path, cache)
    (folder,) = (cache / "decoded" / name for name in caches(cache) if not name.startswith("."))
    seen = {
        "captions": [decoded.caption(i) for i in range(len(decoded))],
        "sums": decoded.images.sum(axis=(1, 2, 3)).tolist(),
        "inode": (folder / "images.u8").stat().st_ino,
    }
    report.write_text(json.dumps(seen))


def test_two_processes_that_build_at_once_share_one_good_cache(tmp_path):
    pictures = [picture(i, (64, 64)) for i in range(100)]
    path = write_csv(tmp_path / "data.csv", [(text, f"number {i}") for i, text in enumerate(pictures)])
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    reports = [tmp_path / f"report-{i}.json" for i in range(2)]
    builders = [spawn.Process(target=_build_at_once, args=(path, tmp_path / "cache", barrier, r)) for r in reports]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(120)
    assert [builder.exitcode for builder in builders] == [0, 0]
    first, second = (json.loads(report.read_text()) for report in reports)
    assert first == second  # one built it, the other read that very file
    assert first["captions"] == [f"number {i}" for i in range(100)]
    assert first["sums"] == [int(by_pillow(text, 8).sum()) for text in pictures]
    assert len(caches(tmp_path / "cache")) == 1


def test_a_full_disk_is_the_users_to_mend_and_leaves_nothing_behind(tmp_path, data_csv):
    index = open_index(data_csv, tmp_path / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(UserError, match=r"cache .*choose another folder"):
            open_decoded(index, *COLUMNS, 64, "raise", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caches(tmp_path / "cache") == []
    assert len(open_decoded(index, *COLUMNS, 64, "raise", tmp_path / "cache")) == 12
