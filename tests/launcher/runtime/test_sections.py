"""Config sections: what parse accepts, what it says when it refuses, and which fields make a run's identity."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from launcher.runtime.errors import UserError
from launcher.runtime.identity import canonical_json, run_id
from launcher.runtime.sections import Section, added, execution, flat, halves, hashed, merged, nearest, parse

law = settings(max_examples=60)


@dataclass(frozen=True, kw_only=True)
class Files(Section):
    kind: Literal["files"]
    path: str = execution()
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Shapes(Section):
    kind: Literal["shapes"]
    count: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Loop(Section):
    steps: Annotated[int, Field(ge=1)] | None
    epochs: int | None
    log_every: int = execution()

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: exactly one is set")


@dataclass(frozen=True, kw_only=True)
class Whole(Section):
    data: Annotated[Files | Shapes, Field(discriminator="kind")]
    loop: Loop
    lr: Annotated[float, Field(allow_inf_nan=False)]
    mode: Literal["fast", "slow"]
    name: str
    flip: bool
    sizes: list[int]
    split: tuple[float, float]
    threads: int = execution(4)


@dataclass(frozen=True, kw_only=True)
class Grown(Whole):
    warmup: int = added(0)
    threads_of_loader: int = execution(1)


GOOD: dict[str, Any] = {
    "data": {"kind": "shapes", "count": 3},
    "loop": {"steps": 5, "epochs": None, "log_every": 1},
    "lr": 0.1,
    "mode": "fast",
    "name": "a run",
    "flip": True,
    "sizes": [1, 2],
    "split": [0.5, 0.5],
    "threads": 4,
}

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
wholes = st.fixed_dictionaries(
    {
        "data": st.one_of(
            st.fixed_dictionaries({"kind": st.just("files"), "path": texts, "digest": st.none() | texts}),
            st.fixed_dictionaries({"kind": st.just("shapes"), "count": st.integers(1)}),
        ),
        "loop": st.fixed_dictionaries({"steps": st.integers(1), "epochs": st.none(), "log_every": st.integers()}),
        "lr": numbers,
        "mode": st.sampled_from(["fast", "slow"]),
        "name": texts,
        "flip": st.booleans(),
        "sizes": st.lists(st.integers()),
        "split": st.lists(numbers, min_size=2, max_size=2),
        "threads": st.integers(),
    }
)
leaves = st.none() | st.booleans() | st.integers() | texts
trees = st.recursive(st.dictionaries(texts, leaves), lambda inner: st.dictionaries(texts, leaves | inner), max_leaves=8)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != key}


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(Whole, GOOD | changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What parse takes


@law
@given(wholes)
def test_parse_gives_back_every_value_it_was_given(values):
    assert json.loads(json.dumps(dataclasses.asdict(parse(Whole, values)))) == values


def test_fields_with_a_default_may_be_left_out():
    assert parse(Whole, without("threads")).threads == 4


def test_an_int_given_for_a_float_becomes_a_float_and_gives_the_same_id():
    one, other = parse(Whole, GOOD | {"lr": 1}), parse(Whole, GOOD | {"lr": 1.0})
    assert type(one.lr) is float
    assert run_id(hashed(one)) == run_id(hashed(other))


def test_a_union_builds_the_section_that_its_kind_names():
    assert parse(Whole, GOOD).data == Shapes(kind="shapes", count=3)
    files = {"kind": "files", "path": "a.csv", "digest": None}
    assert parse(Whole, GOOD | {"data": files}).data == Files(**files)


def test_a_built_section_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(Whole, GOOD).lr = 2.0


# What parse refuses, and what it says


def test_an_unknown_key_is_told_with_the_nearest_name_and_all_that_are_allowed():
    allowed = "allowed here: data, flip, loop, lr, mode, name, sizes, split, threads"
    assert refusal(thread=1) == f"unknown key 'thread'; did you mean 'threads'? ({allowed})"


def test_an_unknown_key_that_is_near_to_nothing_gets_no_hint():
    assert "did you mean" not in refusal(xyzzy=1)


def test_an_unknown_key_inside_a_section_is_told_with_its_path_and_siblings():
    said = refusal(loop=GOOD["loop"] | {"step": 1})
    assert said == "unknown key 'loop.step'; did you mean 'steps'? (allowed here: epochs, log_every, steps)"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", 3, "name=3: should be a valid string"),
        ("lr", "0.1", "lr='0.1': should be a valid number"),
        ("lr", True, "lr=True: should be a valid number"),
        ("lr", None, "lr=None: should be a valid number"),
        ("threads", True, "threads=True: should be a valid integer"),
        ("threads", "4", "threads='4': should be a valid integer"),
        ("threads", 4.0, "threads=4.0: should be a valid integer"),
        ("flip", 1, "flip=1: should be a valid boolean"),
        ("flip", "true", "flip='true': should be a valid boolean"),
        ("sizes", [1, "x"], "sizes.1='x': should be a valid integer"),
        ("sizes", 3, "sizes=3: should be a valid array"),
        ("loop", 3, "loop=3: should be an object"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_key_its_value_and_what_it_should_be(key, value, said):
    assert refusal(**{key: value}) == said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_where_they_are_forbidden(value):
    assert refusal(lr=value) == f"lr={value!r}: should be a finite number"


def test_a_number_out_of_range_is_told_with_its_bound():
    assert refusal(loop=GOOD["loop"] | {"steps": 0}) == "loop.steps=0: should be greater than or equal to 1"


def test_a_missing_key_is_told_with_its_path():
    with pytest.raises(UserError, match=r"^missing key 'lr'$"):
        parse(Whole, without("lr"))
    assert refusal(loop={"steps": 5, "epochs": None}) == "missing key 'loop.log_every'"


def test_a_wrong_choice_is_told_with_all_choices_and_the_nearest():
    assert refusal(mode="fats") == "mode='fats': should be 'fast' or 'slow'; did you mean 'fast'?"
    assert refusal(mode="zzz") == "mode='zzz': should be 'fast' or 'slow'"


def test_a_cross_check_speaks_in_its_own_words_behind_its_section():
    said = refusal(loop={"steps": 5, "epochs": 2, "log_every": 1})
    assert said == "loop: steps=5 and epochs=2: exactly one is set"


def test_a_cross_check_of_the_outermost_section_stands_alone():
    with pytest.raises(UserError, match=r"^steps=None and epochs=None: exactly one is set$"):
        parse(Loop, {"steps": None, "epochs": None, "log_every": 1})


def test_an_unknown_kind_is_told_with_all_kinds_and_the_nearest():
    said = refusal(data={"kind": "shape", "count": 3})
    assert said == "data.kind='shape': should be one of 'files', 'shapes'; did you mean 'shapes'?"


def test_a_missing_kind_is_a_missing_key():
    assert refusal(data={"count": 3}) == "missing key 'data.kind'"


def test_errors_inside_a_union_name_the_key_as_the_user_typed_it():
    assert refusal(data={"kind": "shapes", "count": "x"}) == "data.count='x': should be a valid integer"
    assert refusal(data={"kind": "shapes"}) == "missing key 'data.count'"


def test_an_unknown_key_inside_a_union_lists_the_keys_of_the_chosen_kind_only():
    said = refusal(data={"kind": "shapes", "count": 3, "counts": 1})
    assert said == "unknown key 'data.counts'; did you mean 'count'? (allowed here: count, kind)"


def test_several_errors_are_told_at_once_in_one_line():
    said = refusal(lr="x", mode="fats", data={"kind": "shapes"}, loop=GOOD["loop"] | {"step": 1})
    assert len(said.split("; ")) == 6, said  # four errors, two of them with a hint
    for part in ("lr='x'", "mode='fats'", "missing key 'data.count'", "unknown key 'loop.step'"):
        assert part in said


def test_nearest_offers_one_name_or_nothing():
    assert nearest("stpes", ["steps", "epochs"]) == "; did you mean 'steps'?"
    assert nearest("qqq", ["steps", "epochs"]) == ""
    assert nearest("steps", []) == ""


# Science and execution


@law
@given(wholes)
def test_halves_merged_again_are_the_config(values):
    config = parse(Whole, values)
    assert parse(Whole, merged(*halves(config))) == config


@law
@given(wholes)
def test_halves_share_no_key(values):
    science, other = halves(parse(Whole, values))
    assert flat(science).keys().isdisjoint(flat(other))


def test_halves_put_each_field_where_it_was_declared():
    files = {"kind": "files", "path": "a.csv", "digest": "d"}
    science, other = halves(parse(Whole, GOOD | {"data": files}))
    assert other == {"data": {"path": "a.csv"}, "loop": {"log_every": 1}, "threads": 4}
    assert science["data"] == {"kind": "files", "digest": "d"}
    assert science["loop"] == {"steps": 5, "epochs": None}


@law
@given(wholes, st.integers(), st.integers())
def test_execution_fields_never_change_the_identity(values, threads, log_every):
    other = values | {"threads": threads, "loop": values["loop"] | {"log_every": log_every}}
    assert run_id(hashed(parse(Whole, values))) == run_id(hashed(parse(Whole, other)))


@law
@given(wholes, wholes)
def test_two_configs_have_one_identity_exactly_where_their_science_is_equal(one, other):
    first, second = parse(Whole, one), parse(Whole, other)
    same_science = canonical_json(halves(first)[0]) == canonical_json(halves(second)[0])
    assert (canonical_json(hashed(first)) == canonical_json(hashed(second))) == same_science


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.2},
        {"mode": "slow"},
        {"sizes": [2, 1]},
        {"loop": {"steps": 6, "epochs": None, "log_every": 1}},
        {"data": {"kind": "shapes", "count": 4}},
    ],
)
def test_every_science_field_changes_the_identity(change):
    assert hashed(parse(Whole, GOOD | change)) != hashed(parse(Whole, GOOD))


@law
@given(wholes)
def test_added_fields_at_their_default_leave_old_ids_as_they_were(values):
    assert run_id(hashed(parse(Grown, values))) == run_id(hashed(parse(Whole, values)))
    assert run_id(hashed(parse(Grown, values | {"warmup": 0}))) == run_id(hashed(parse(Whole, values)))


@law
@given(wholes, st.integers(1))
def test_added_fields_off_their_default_make_another_run(values, warmup):
    assert run_id(hashed(parse(Grown, values | {"warmup": warmup}))) != run_id(hashed(parse(Whole, values)))


def test_added_fields_are_kept_in_the_science_half_even_at_their_default():
    assert halves(parse(Grown, GOOD))[0]["warmup"] == 0


# Nested mappings


@law
@given(trees, trees)
def test_merged_leaves_its_arguments_alone_and_lets_the_second_win(first, second):
    before = json.dumps([first, second])
    result = merged(first, second)
    assert json.dumps([first, second]) == before
    assert result.keys() == first.keys() | second.keys()
    assert all(result[key] == value for key, value in second.items() if not isinstance(value, dict))
    assert all(result[key] == value for key, value in first.items() if key not in second)


@law
@given(trees)
def test_merged_with_nothing_or_with_itself_is_the_same(tree):
    assert merged(tree, {}) == merged({}, tree) == merged(tree, tree) == tree


def test_flat_joins_keys_by_dots():
    assert flat({"optim": {"lr": 1, "betas": [1, 2]}, "seed": 0}) == {"optim.lr": 1, "optim.betas": [1, 2], "seed": 0}
