"""Captions to tokens and back. Four special tokens come first in every vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from launcher.runtime.errors import UserError

PAD, BEGIN, END, UNKNOWN = range(4)
N_SPECIAL = 4


class Tokenizer(Protocol):
    """Text to token ids. ``encode`` adds no special tokens; the begin and end tokens are the data's business."""

    end: int
    """Token behind which a caption is over."""
    unwritten: Sequence[int]
    """Tokens that are never written."""

    def start(self, prompt: str) -> np.ndarray:
        """``(n,) int64``, n > 0: what the model reads before the first token that it writes."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""

    def encode(self, text: str) -> np.ndarray:
        """``(length,) int64``. The tokens of two texts are those of the two joined."""

    def lengths(self, chars: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Tokens of texts of so many characters and UTF-8 bytes."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; special tokens have none."""

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` needs to make it again."""


class _Specials:
    """The special tokens of captions that begin with BEGIN and stop with END."""

    end = END
    unwritten: Sequence[int] = (PAD, BEGIN)

    def start(self: Tokenizer, prompt: str) -> np.ndarray:
        """The begin token and the prompt."""
        return np.concatenate([[BEGIN], self.encode(prompt)])


class CharTokenizer(_Specials):
    """One token a character (Unicode code point) of the training captions."""

    def __init__(self, characters: str) -> None:
        """``characters``: at least one, each once, in code point order."""
        self.characters = characters
        codes = _code_points(characters)
        self._ids = np.full(int(codes.max()) + 2, UNKNOWN, np.int64)  # by code point; one more for those beyond
        self._ids[codes] = np.arange(len(codes)) + N_SPECIAL

    @staticmethod
    def of(captions: Iterable[str]) -> CharTokenizer:
        """The tokenizer of all characters in ``captions``, in code point order."""
        seen: set[str] = set()
        for caption in captions:
            seen.update(caption)
        return CharTokenizer("".join(sorted(seen)))

    @property
    def vocab_size(self) -> int:
        """Characters plus special tokens."""
        return len(self.characters) + N_SPECIAL

    def encode(self, text: str) -> np.ndarray:
        """Characters that were in no training caption become UNKNOWN."""
        return self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]

    def lengths(self, chars: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """As many as characters."""
        return chars

    def decode(self, tokens: Sequence[int]) -> str:
        """UNKNOWN reads as U+FFFD, the other special tokens as nothing."""
        texts = ("\ufffd" if t == UNKNOWN else self.characters[t - N_SPECIAL] if t >= N_SPECIAL else "" for t in tokens)
        return "".join(texts)

    def to_json(self) -> dict[str, Any]:
        """Kind and characters."""
        return {"kind": "char", "characters": self.characters}


class ByteTokenizer(_Specials):
    """One token a byte of UTF-8: any text can be written, none is unknown."""

    @property
    def vocab_size(self) -> int:
        """All bytes plus special tokens."""
        return 256 + N_SPECIAL

    def encode(self, text: str) -> np.ndarray:
        """The bytes of ``text``, shifted behind the special tokens."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64) + N_SPECIAL

    def lengths(self, chars: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """As many as bytes."""
        return sizes

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no UTF-8 read as U+FFFD."""
        return bytes(t - N_SPECIAL for t in tokens if t >= N_SPECIAL).decode(errors="replace")

    def to_json(self) -> dict[str, Any]:
        """Kind alone."""
        return {"kind": "byte"}


class SeedTokenizer:
    """What the seeds trained with: characters from 0 in code point order, ``<pad>`` behind them, no begin, no end."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.end = len(characters)
        self.unwritten: Sequence[int] = ()

    @property
    def vocab_size(self) -> int:
        """Characters and ``<pad>``."""
        return len(self.characters) + 1

    def start(self, prompt: str) -> np.ndarray:
        """The prompt alone.

        Raises:
            UserError: it is empty; a seed's model has no token to begin with.
        """
        if not prompt:
            raise UserError("a converted seed has no begin token: give the caption's first letters with --prompt")
        return self.encode(prompt)

    def encode(self, text: str) -> np.ndarray:
        """Places of the characters.

        Raises:
            UserError: a character is none of the model's.
        """
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            raise UserError(f"{text!r}: the model does not know {''.join(unknown)!r}")
        return np.array([self.characters.index(c) for c in text], np.int64)

    def lengths(self, chars: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """As many as characters."""
        return chars

    def decode(self, tokens: Sequence[int]) -> str:
        """Padding reads as nothing."""
        return "".join(self.characters[t] for t in tokens if t < len(self.characters))

    def to_json(self) -> dict[str, Any]:
        """Kind and characters."""
        return {"kind": "seed", "characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def tokenizer_from_json(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer that ``to_json`` described."""
    if values["kind"] == "byte":
        return ByteTokenizer()
    kind = CharTokenizer if values["kind"] == "char" else SeedTokenizer
    return kind(values["characters"])
