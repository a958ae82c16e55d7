"""The page as text: whatever a user wrote is text in it; nothing in it asks for anything from elsewhere."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from sweeps.compare.page import as_data
from sweeps.compare.picture import MOST_POINTS, thinned
from tests.sweeps.compare.made_runs import made_grid, made_run


def content(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_data_come_back_as_they_were_and_cannot_end_their_element(value):
    text = as_data(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text) and text.isascii()


def test_a_page_holds_all_runs_and_their_curves(folder, compare, tmp_path):
    made_grid(folder)
    made_run(folder, state="RUNNING", optim__lr=1, curve={10: 3.0, 20: float("nan")})
    code, _, said = compare(folder, "--html", tmp_path / "a.html")
    assert code == 0 and said[-1] == f"wrote {tmp_path}/a.html"
    held = content((tmp_path / "a.html").read_text())
    assert [run["setting"] for run in held["runs"]] == [0, 0, 1, 1, None]
    assert [run["value"] for run in held["runs"]] == [1.0, 1.01, 3.0, 3.01, 3.0]
    assert held["curves"]["names"] == ["val/loss", "train/loss"]
    assert [line[2] for line in held["curves"]["lines"]["val/loss"]][-2:] == [[6.02, 3.01], [3.0]]
    assert held["curves"]["steps"] == [[10, 20], [10]], "steps that runs share are there once"


def test_the_same_runs_give_the_same_bytes_and_nothing_asks_for_anything(folder, compare, tmp_path):
    made_grid(folder)
    for name in ("a.html", "b.html"):
        compare(folder, "--html", tmp_path / name)
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert set(re.findall(r"https?://[^'\"\s]+", page)) == {"http://www.w3.org/2000/svg"}, "the name of a namespace"
    assert re.findall(r"<[^>]+\s(?:src|href|style|on\w+)=[^>]+>", page) == ['<link rel="icon" href="data:,">']


def test_hostile_words_stay_words(tmp_path, compare):
    folder = tmp_path / "<b>{{data}}&"
    made_run(folder, 1.0, data__kind="</script><script>alert(1)</script>{{script}}")
    made_run(folder, 2.0)
    compare(folder, "--html", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<title>&lt;b&gt;{{data}}&amp;</title>" in page
    assert "</script><script>alert(1)</script>{{script}}" in content(page)["runs"][0]["values"]


def test_a_curve_that_no_run_logged_is_no_reason_to_have_no_page(folder, compare, tmp_path):
    for run in made_grid(folder):
        run.metrics.unlink()
    assert compare(folder, "--html", tmp_path / "a.html")[0] == 0
    assert content((tmp_path / "a.html").read_text())["curves"]["names"] == []


@given(st.lists(st.floats(allow_infinity=True, allow_nan=True, width=32), max_size=1000), st.integers(4, 300))
def test_thinning_keeps_both_ends_and_the_extremes(values, most):
    steps, kept = thinned((list(range(len(values))), values), most)
    finite = [(i, v) for i, v in enumerate(values) if v - v == 0]
    assert len(kept) <= most and steps == sorted(set(steps)) and set(zip(steps, kept, strict=True)) <= set(finite)
    if finite:
        assert (steps[0], steps[-1]) == (finite[0][0], finite[-1][0])
        assert (min(kept), max(kept)) == (min(v for _, v in finite), max(v for _, v in finite))
    if len(finite) <= most:
        assert len(kept) == len(finite)


def test_thinning_is_to_what_the_page_says():
    assert len(thinned((list(range(10**5)), [float(i % 977) for i in range(10**5)]))[0]) <= MOST_POINTS
