"""A run's identity: canonical JSON and the hash of it."""

from __future__ import annotations

import hashlib
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.identity import canonical_json, run_id

law = settings(max_examples=100)
texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
mappings = st.dictionaries(texts, values, max_size=5)


def by_hand(value):
    """Canonical JSON built without json's own sorting or separators."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{by_hand(k)}:{by_hand(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(by_hand, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@law
@given(mappings)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    assert canonical_json(reordered(value)) == canonical_json(value)


@law
@given(values)
def test_canonical_json_is_json_of_the_same_value_without_spaces(value):
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(value) == by_hand(value)


@law
@given(values, values)
def test_different_values_have_different_canonical_json(one, other):
    if canonical_json(one) == canonical_json(other):
        assert one == other


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_have_no_canonical_json(number):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"lr": [number]})


@law
@given(mappings)
def test_run_id_is_the_start_of_the_sha256_of_canonical_json(science):
    digest = hashlib.sha256(by_hand(science).encode("utf-8")).hexdigest()
    assert run_id(science) == digest[:12]
    assert re.fullmatch("[0-9a-f]{12}", run_id(science))


def test_run_id_of_a_known_science_stays_the_same_for_ever():
    science = {"optim": {"lr": 0.001, "kind": "adamw"}, "seed": 1, "note": "é"}
    text = '{"note":"é","optim":{"kind":"adamw","lr":0.001},"seed":1}'
    assert run_id(science) == hashlib.sha256(text.encode()).hexdigest()[:12] == "5de142193b4d"


def test_a_child_has_another_id_than_a_run_from_scratch_and_than_one_of_another_parent():
    science = {"seed": 1}
    text = '{"parent":"5de142193b4d","science":{"seed":1}}'
    assert run_id(science, "5de142193b4d") == hashlib.sha256(text.encode()).hexdigest()[:12] == "412cd86fa3b9"
    assert len({run_id(science), run_id(science, "5de142193b4d"), run_id(science, "0123456789ab")}) == 3
