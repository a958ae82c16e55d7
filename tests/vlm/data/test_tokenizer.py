"""Tokenizers: text to tokens and back, and the laws that batches rely on."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from vlm.data.tokenizer import (
    BEGIN,
    END,
    N_SPECIAL,
    PAD,
    UNKNOWN,
    ByteTokenizer,
    CharTokenizer,
    SeedTokenizer,
    tokenizer_from_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SPECIAL = (PAD, BEGIN, END, UNKNOWN)


def measured(tokenizer, texts):
    """What ``lengths`` says of ``texts``."""
    chars = np.array([len(text) for text in texts])
    return tokenizer.lengths(chars, np.array([len(text.encode()) for text in texts])).tolist()


@pytest.fixture(params=["char", "byte", "seed"])
def tokenizer(request):
    characters = "".join(sorted(set("abc xyzé☕😀")))
    made = {"char": CharTokenizer(characters), "byte": ByteTokenizer(), "seed": SeedTokenizer(characters)}
    return made[request.param]


def test_special_tokens_are_the_first_four():
    assert sorted(SPECIAL) == list(range(N_SPECIAL)) == [0, 1, 2, 3]


@given(captions=st.lists(TEXT, min_size=1).filter(any))
def test_char_gives_back_every_training_caption(captions):
    tokenizer = CharTokenizer.of(captions)
    for caption in captions:
        assert tokenizer.decode(tokenizer.encode(caption).tolist()) == caption


@given(text=TEXT)
def test_byte_gives_back_any_text(text):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens.tolist()) == text
    assert all(N_SPECIAL <= token < tokenizer.vocab_size for token in tokens)


@given(captions=st.lists(TEXT, min_size=1).filter(any), text=TEXT)
def test_char_knows_the_training_characters_and_no_other(captions, text):
    tokenizer = CharTokenizer.of(captions)
    known = set("".join(captions))
    tokens = tokenizer.encode(text).tolist()
    assert [token == UNKNOWN for token in tokens] == [c not in known for c in text]
    assert all(token == UNKNOWN or N_SPECIAL <= token < tokenizer.vocab_size for token in tokens)
    assert tokenizer.decode(tokens) == "".join(c if c in known else "\ufffd" for c in text)


@given(captions=st.lists(TEXT, min_size=1).filter(any))
def test_char_has_one_token_for_each_character_in_code_point_order(captions):
    tokenizer = CharTokenizer.of(captions)
    characters = sorted(set("".join(captions)))
    assert tokenizer.vocab_size == N_SPECIAL + len(characters)
    assert tokenizer.encode("".join(characters)).tolist() == list(range(N_SPECIAL, tokenizer.vocab_size))


def test_char_does_not_depend_on_the_order_of_the_captions():
    assert CharTokenizer.of(["ba", "cab"]).to_json() == CharTokenizer.of(["c", "b", "a"]).to_json()


@given(a=TEXT, b=TEXT)
def test_char_and_byte_tokens_of_two_texts_are_those_of_the_two_joined(a, b):
    for tokenizer in (CharTokenizer("abcé"), ByteTokenizer()):
        assert tokenizer.encode(a + b).tolist() == [*tokenizer.encode(a).tolist(), *tokenizer.encode(b).tolist()]


@given(texts=st.lists(TEXT, max_size=5))
def test_char_and_byte_lengths_are_those_of_the_tokens(texts):
    for tokenizer in (CharTokenizer("abcé"), ByteTokenizer()):
        assert measured(tokenizer, texts) == [len(tokenizer.encode(text)) for text in texts]


def test_tokens_are_int64_also_of_no_text(tokenizer):
    for text in ("", "abc", "é☕😀"):
        assert tokenizer.encode(text).dtype == np.int64
        assert tokenizer.encode(text).ndim == 1


def test_json_makes_the_same_tokenizer_again(tokenizer):
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is type(tokenizer)
    assert (again.vocab_size, again.end, list(again.unwritten)) == (
        tokenizer.vocab_size,
        tokenizer.end,
        list(tokenizer.unwritten),
    )
    assert again.encode("abc é☕😀").tolist() == tokenizer.encode("abc é☕😀").tolist()


@pytest.mark.parametrize("kind", [CharTokenizer("ab"), ByteTokenizer()], ids=["char", "byte"])
def test_captions_start_with_the_begin_token_and_never_write_padding_or_begin(kind):
    assert kind.start("").tolist() == [BEGIN]
    assert kind.start("ab").tolist() == [BEGIN, *kind.encode("ab").tolist()]
    assert kind.start("ab").dtype == np.int64
    assert kind.end == END
    assert set(kind.unwritten) == {PAD, BEGIN}


@pytest.mark.parametrize("kind", [CharTokenizer("ab"), ByteTokenizer()], ids=["char", "byte"])
def test_padding_begin_and_end_read_as_nothing(kind):
    a, b = kind.encode("ab").tolist()
    assert kind.decode([BEGIN, a, PAD, b, END, PAD]) == "ab"


def test_bytes_that_are_no_utf8_read_as_replacement():
    tokens = ByteTokenizer().encode("é").tolist()
    assert ByteTokenizer().decode(tokens[:1]) == "\ufffd"


@given(text=st.text("bdf🙂", max_size=20), other=st.text("bdf🙂", max_size=20))
def test_seed_counts_characters_from_0_and_gives_them_back(text, other):
    tokenizer = SeedTokenizer("bdf🙂")
    tokens = tokenizer.encode(text).tolist()
    assert tokens == ["bdf🙂".index(c) for c in text]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode(text + other).tolist() == tokens + tokenizer.encode(other).tolist()
    assert measured(tokenizer, [text]) == [len(tokens)]


def test_seed_ends_with_padding_behind_its_characters():
    tokenizer = SeedTokenizer("bdf")
    assert (tokenizer.vocab_size, tokenizer.end, list(tokenizer.unwritten)) == (4, 3, [])
    assert tokenizer.decode([1, 3, 3]) == "d"


def test_seed_refuses_characters_that_its_model_does_not_know():
    with pytest.raises(UserError, match="'bad': the model does not know 'a'"):
        SeedTokenizer("bdf").encode("bad")


def test_seed_needs_a_prompt():
    assert SeedTokenizer("bdf").start("fb").tolist() == [2, 0]
    with pytest.raises(UserError, match="--prompt"):
        SeedTokenizer("bdf").start("")
