"""One row of a data file: its picture decoded, its caption checked, or the reason why not."""

from __future__ import annotations

import binascii
import hashlib
import io
import unicodedata
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
"""Picture formats that are read; the decoders of rarer ones are where decoders' holes are."""
MAX_PIXELS = 64 << 20
"""Largest picture that is decoded, width times height: a small file may claim a huge one (decompression bomb)."""


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Row:
    """A usable row."""

    pixels: np.ndarray
    """``(3, size, size) uint8``, RGB."""
    caption: str
    """NFC-normalised."""
    picture_id: bytes
    """16 bytes that two rows share if and only if they show the same pixels at full size."""


def read_row(picture: str, caption: str, size: int) -> Row:
    """Decode a row's two fields.

    Raises:
        BadRow: the base64, the picture or the caption cannot be used.
    """
    image = decode_picture(_unbase64(picture))
    whole = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
    return Row(resized(image, size), _checked_caption(caption), whole)


def decode_picture(data: bytes) -> Image.Image:
    """The upright RGB picture of a JPEG, PNG or WebP file.

    Raises:
        BadRow: it is none of them, is damaged, or claims more than ``MAX_PIXELS``.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadRow(f"the picture claims {image.width}x{image.height} pixels, more than {MAX_PIXELS}: refused")
        image.load()
        image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"the picture is refused: {error}") from None
    except UnidentifiedImageError:
        raise BadRow(f"the picture is no readable {', '.join(FORMATS)} file") from None
    except BadRow:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise BadRow(f"the picture is damaged: {error}") from None
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would turn all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # a palette may hold transparency, which only RGBA can take over
        image = image.convert("RGBA")
    return image.convert("RGB")


def resized(image: Image.Image, size: int) -> np.ndarray:
    """``image`` as ``(3, size, size) uint8``, resized bilinearly with antialiasing, its aspect not kept."""
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _unbase64(text: str) -> bytes:
    text = text.strip()
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"the picture is no base64: {error}") from None
    if not data:
        raise BadRow("the picture is empty")
    return data


def _checked_caption(caption: str) -> str:
    if "\0" in caption:
        raise BadRow("the caption holds a NUL character")
    if any("\ud800" <= c <= "\udfff" for c in caption):
        raise BadRow("the caption holds a lone surrogate")
    if not caption.strip():
        raise BadRow("the caption is empty")
    return unicodedata.normalize("NFC", caption)
