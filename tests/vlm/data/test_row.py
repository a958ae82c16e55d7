"""One row: which pictures and captions are taken, what they become, and why the others are refused."""

import base64
import io
import struct
import textwrap
import unicodedata
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import packed, picture
from vlm.data.row import BadRow, decode_picture, read_row, resized


def noise(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def file_of(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(data):
    return np.asarray(decode_picture(data))


def read(data, size=8):
    return read_row(base64.b64encode(data).decode(), "caption", size)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99), height=st.integers(1, 20), width=st.integers(1, 20), kind=st.sampled_from(["PNG", "WEBP"])
)
def test_a_lossless_picture_keeps_every_pixel(seed, height, width, kind):
    pixels = noise(seed, height, width)
    data = file_of(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decoded(data), pixels)


def test_a_jpeg_keeps_its_colour():
    data = file_of(Image.new("RGB", (16, 16), (200, 100, 50)), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - [200, 100, 50]).max() <= 3


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), height=st.integers(1, 30), width=st.integers(1, 30), size=st.integers(1, 24))
def test_pixels_are_pillows_bilinear_ones_channels_first(seed, height, width, size):
    image = Image.fromarray(noise(seed, height, width))
    row = read(file_of(image), size)
    expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    assert row.pixels.dtype == np.uint8 and row.pixels.flags.c_contiguous
    assert np.array_equal(row.pixels, expected.transpose(2, 0, 1))
    assert np.array_equal(row.pixels, resized(image, size))


def test_grey_becomes_three_equal_channels():
    grey = noise(0, 6, 9, 1)
    assert np.array_equal(decoded(file_of(Image.fromarray(grey[:, :, 0]))), grey.repeat(3, axis=2))


def test_grey_of_16_bits_keeps_its_upper_ones():
    deep = (np.arange(64 * 4, dtype=np.uint16).reshape(8, 32) * 257) + 100
    assert np.array_equal(decoded(file_of(Image.fromarray(deep))), (deep >> 8)[:, :, None].repeat(3, axis=2))


def test_black_and_white_becomes_0_and_255():
    bits = noise(0, 6, 9, 1)[:, :, 0] > 127
    assert np.array_equal(decoded(file_of(Image.fromarray(bits))), 255 * bits[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff\x40"], ids=["opaque", "one colour", "per colour"])
def test_a_palette_becomes_its_colours(transparency):
    palette = noise(5, 4, 1)[:, 0]
    places = noise(6, 7, 9, 1)[:, :, 0] % 4
    image = Image.fromarray(places).convert("L")
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    data = file_of(image, **({} if transparency is None else {"transparency": transparency}))
    assert np.array_equal(decoded(data), palette[places])


def test_alpha_is_dropped():
    pixels = noise(1, 7, 9, 4)
    assert np.array_equal(decoded(file_of(Image.fromarray(pixels))), pixels[:, :, :3])


def test_grey_with_alpha_becomes_three_equal_channels():
    pixels = noise(1, 7, 9, 2)
    data = file_of(Image.merge("LA", [Image.fromarray(pixels[:, :, i]) for i in (0, 1)]))
    assert np.array_equal(decoded(data), pixels[:, :, :1].repeat(3, axis=2))


def test_a_cmyk_jpeg_becomes_rgb():
    data = file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - [255, 0, 0]).max() <= 3


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation):
    pixels = noise(2, 5, 9)
    exif = Image.Exif()
    exif[0x112] = orientation
    assert np.array_equal(decoded(file_of(Image.fromarray(pixels), exif=exif)), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_exif_orientation_is_applied_whatever_the_format(kind):
    exif = Image.Exif()
    exif[0x112] = 6
    assert decode_picture(file_of(Image.new("RGB", (9, 5)), kind, exif=exif)).size == (5, 9)


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"Exif\0\0MM\0*\0"], ids=["no TIFF", "cut off"])
def test_a_broken_exif_makes_the_picture_a_damaged_one(exif):
    with pytest.raises(BadRow, match="damaged"):
        decode_picture(file_of(Image.new("RGB", (9, 5)), "WEBP", exif=exif))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: "data:image/png;base64," + text,
        lambda text: "data:image/png;base64,\n" + "\r\n".join(textwrap.wrap(text, 76)),
        lambda text: "\n".join(textwrap.wrap(text, 64)) + "\n",
        lambda text: "  \t" + text + " ",
    ],
    ids=["data URL", "wrapped data URL", "wrapped", "spaces"],
)
def test_base64_may_be_a_data_url_or_wrapped(wrap):
    plain = read_row(picture(3), "x", 8)
    assert np.array_equal(read_row(wrap(picture(3)), "x", 8).pixels, plain.pixels)


@pytest.mark.parametrize(
    "text", ["no base64!", "abc", "QUJ=RA==", "-_-_", "é", picture(0) + "!", picture(0)[:-1] + "%"]
)
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(BadRow, match="no base64"):
        read_row(text, "x", 8)


@pytest.mark.parametrize("text", ["", "  \n", "data:image/png;base64,", "data:image/png"])
def test_an_empty_picture_is_refused(text):
    with pytest.raises(BadRow, match="the picture is empty"):
        read_row(text, "x", 8)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind):
    with pytest.raises(BadRow, match="no readable JPEG, PNG, WEBP"):
        read(file_of(Image.new("RGB", (16, 16)), kind))


@pytest.mark.parametrize("data", [b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 "])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(BadRow, match="the picture is"):
        read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_picture_is_refused(kind, kept):
    whole = file_of(Image.fromarray(noise(4, 40, 40)), kind)
    with pytest.raises(BadRow, match=r"damaged|no readable"):
        read(whole[: int(len(whole) * kept)])


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
    kept=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what is corrupt in the EXIF data
def test_a_corrupt_picture_is_read_or_refused_but_never_crashes(kind, flips, kept):
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    data = bytearray(file_of(Image.new("RGB", (7, 5), (9, 99, 199)), kind, exif=exif))
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    try:
        row = read(bytes(data[: int(kept * len(data))]))
    except BadRow as refused:
        assert "picture" in str(refused)
    else:
        assert row.pixels.shape == (3, 8, 8)


@settings(deadline=None, max_examples=100)
@given(
    flips=st.lists(st.tuples(st.integers(0, 48), st.integers(1, 255)), min_size=1, max_size=4), cut=st.integers(0, 40)
)
@pytest.mark.filterwarnings("ignore")
def test_a_picture_with_corrupt_exif_is_read_or_refused_but_never_crashes(flips, cut):
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    data = bytearray(exif.tobytes())
    for place, mask in flips:
        data[place % len(data)] ^= mask
    whole = file_of(Image.new("RGB", (7, 5)), "WEBP", exif=bytes(data[: len(data) - cut]))
    try:
        assert decode_picture(whole).size in {(7, 5), (5, 7)}
    except BadRow as refused:
        assert "damaged" in str(refused)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"cannot be decoded") + chunk(b"IEND", b"")


def jpeg_that_claims(width, height):
    data = file_of(Image.new("RGB", (8, 8)), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize("claims", [png_that_claims, jpeg_that_claims])
@pytest.mark.parametrize("size", [(20_000, 20_000), (9_500, 9_500), (8_193, 8_192)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(claims, size):
    with pytest.raises(BadRow, match="refused"):  # decoding it would say that it is damaged
        read(claims(*size))


def test_the_largest_picture_allowed_is_read(monkeypatch):
    data = file_of(Image.fromarray(noise(0, 14, 20)))
    monkeypatch.setattr("vlm.data.row.MAX_PIXELS", 14 * 20)
    assert decode_picture(data).size == (20, 14)
    monkeypatch.setattr("vlm.data.row.MAX_PIXELS", 14 * 20 - 1)
    with pytest.raises(BadRow, match="claims 20x14 pixels, more than 279: refused"):
        decode_picture(data)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("a\0b", "NUL"),
        ("a\ud800b", "lone surrogate"),
        ("\udfff", "lone surrogate"),
        ("", "empty"),
        (" \t\r\n\u00a0\u3000", "empty"),
    ],
)
def test_a_caption_that_cannot_be_used_is_refused(caption, reason):
    with pytest.raises(BadRow, match=f"the caption .*{reason}"):
        read_row(picture(0), caption, 8)


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8))
def test_captions_are_nfc_normalised_and_otherwise_kept(text):
    caption = f" e\u0301 {text}\n"
    assert read_row(picture(0), caption, 2).caption == unicodedata.normalize("NFC", caption)
    assert read_row(picture(0), caption, 2).caption.startswith(" é ")


def test_picture_id_is_that_of_the_full_pixels_not_of_the_file():
    pixels = noise(7, 30, 30)
    image = Image.fromarray(pixels)
    row = read(file_of(image))
    assert len(row.picture_id) == 16
    assert read(file_of(image, compress_level=0)).picture_id == row.picture_id
    assert read(file_of(image, "WEBP", lossless=True), size=4).picture_id == row.picture_id
    other = pixels.copy()
    other[17, 3, 1] ^= 1
    assert read(file_of(Image.fromarray(other))).picture_id != row.picture_id


def test_picture_id_knows_the_shape():
    wide, high = Image.new("RGB", (12, 3)), Image.new("RGB", (3, 12))
    assert read(file_of(wide)).picture_id != read(file_of(high)).picture_id


def test_packed_pictures_of_the_fixtures_are_readable_in_every_format():
    for kind in ("PNG", "JPEG", "WEBP"):
        assert read_row(packed(Image.new("RGB", (5, 4), (1, 2, 3)), kind), "x", 4).pixels.shape == (3, 4, 4)
