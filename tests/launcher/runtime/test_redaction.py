"""Redaction: secrets go, everything else stays."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.redaction import (
    NAMES,
    REDACTED,
    SHORTEST,
    forget_secrets,
    keep_secret,
    learn,
    looks_secret,
    redacted,
    scrubbed,
    secret_in,
)

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


@pytest.fixture
def known() -> Iterator[None]:
    """What a test tells this process is forgotten after it."""
    yield
    forget_secrets()


@given(st.text(min_size=SHORTEST, max_size=20), st.text(max_size=10), st.text(max_size=10))
def test_a_known_secret_is_in_no_text(secret, before, after):
    try:
        keep_secret({"A": secret})
        shown = scrubbed(f"{before}{secret}{after}")
        assert all(line not in shown.replace(REDACTED, "\0") for line in (secret,) if line not in before + after)
        assert redacted({"a": [secret]}) == {"a": [REDACTED]}
        assert secret_in(f"{before}{secret}") == "A" == secret_in(f"{before}{secret}".encode("utf-8", "surrogatepass"))
    finally:
        forget_secrets()


def test_a_key_of_several_lines_is_hidden_line_by_line(known):
    keep_secret({"A": "-----BEGIN-----\nabcdefghij\nx\n"})
    assert scrubbed("> abcdefghij") == f"> {REDACTED}" and scrubbed("x") == "x"


def test_a_job_learns_its_secrets_by_their_names_and_prints_none(known, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    learn({NAMES: "TOKEN,GONE", "TOKEN": "hunter2hunter2", "OTHER": "not a secret"})
    print("the token is", "hunter2hunter2", "and not a secret")
    sys.stdout.writelines(["hunter2hunter2\n"])
    print("hunter2hunter2", file=sys.stderr)
    said = capsys.readouterr()
    assert said.out == f"the token is {REDACTED} and not a secret\n{REDACTED}\n" and said.err == f"{REDACTED}\n"
    assert sys.stdout.fileno and not sys.stdout.isatty()


@pytest.mark.parametrize(
    ("name", "secret"),
    [("WANDB_API_KEY", True), ("HF_TOKEN", True), ("DB_PASSWORD", True), ("SSH_KEY", True), ("GITHUB_PAT", True),
     ("TOKENIZERS_PARALLELISM", False), ("PATH", False), ("MONKEY", False), ("KEYBOARD", False)],
)  # fmt: skip
def test_names_that_look_secret(name, secret):
    assert looks_secret(name) == secret
