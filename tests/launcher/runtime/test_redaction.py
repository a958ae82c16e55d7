"""Redaction: secrets go, everything else stays."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.redaction import REDACTED, redacted

SECRET = [
    "token", "api_token", "API_TOKEN", "password", "db_password", "passwd", "secret", "client_secret", "secret_key",
    "credential", "credentials", "api_key", "access_key", "private_key",
]  # fmt: skip
HARMLESS = ["tokenizer", "n_tokens", "tokens_seen", "key", "monkey", "token_dim", "secretary", "keyboard", "path", ""]

leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
keys = st.sampled_from(HARMLESS) | st.from_regex(r"[a-j]{1,4}", fullmatch=True)
harmless = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=10
)


@pytest.mark.parametrize("key", SECRET)
def test_text_under_a_secret_key_is_replaced_at_any_depth(key):
    value = {key: "hunter2", "a": [{"b": {key: "hunter2"}}]}
    assert redacted(value) == {key: REDACTED, "a": [{"b": {key: REDACTED}}]}


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_that_only_look_alike_stay(key):
    assert redacted({key: "hunter2"}) == {key: "hunter2"}


@given(harmless)
def test_values_without_secrets_stay_as_they_are(value):
    assert redacted(value) == value


@given(st.dictionaries(keys, harmless, max_size=4), st.sampled_from(SECRET), st.text(min_size=1))
def test_a_secret_changes_under_its_own_key_only(value, key, secret):
    given_value = value | {key: secret}
    before = copy.deepcopy(given_value)
    assert redacted(given_value) == value | {key: REDACTED}
    assert given_value == before


def test_a_secret_that_is_not_set_or_a_section_is_looked_into():
    assert redacted({"token": None, "credentials": {"user": "me", "password": "x"}}) == {
        "token": None,
        "credentials": {"user": "me", "password": REDACTED},
    }


def test_tuples_become_lists_with_their_secrets_gone():
    assert redacted(({"token": "x"}, 1)) == [{"token": REDACTED}, 1]
