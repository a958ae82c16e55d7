"""CSV files that grow by step: what is added is there at once, and what lies beyond a resumed step is gone."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.tables import StepTable

HEADER = ["step", "name", "value"]
law = settings(max_examples=60)
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=6)
tables = st.lists(st.tuples(st.integers(1, 9), cells, cells).map(list), max_size=8)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def written(path, rows, step=0):
    table = StepTable(path, HEADER, step)
    table.add(rows)
    table.close()


def as_text(rows):
    return [[str(cell) for cell in row] for row in rows]


@law
@given(tables)
def test_rows_come_back_as_they_were_added_under_their_header(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        written(path, rows)
        assert read(path) == [HEADER, *as_text(rows)]


@law
@given(tables, st.integers(1, 10), tables)
def test_going_on_after_a_step_keeps_exactly_the_rows_up_to_it(rows, step, later):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        written(path, rows)
        written(path, later, step)
        assert read(path) == [HEADER, *as_text(row for row in rows if row[0] <= step), *as_text(later)]


@law
@given(tables, st.integers(1, 10))
def test_going_on_twice_after_one_step_is_going_on_once(rows, step):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        written(path, rows)
        written(path, [], step)
        once = path.read_bytes()
        written(path, [], step)
        assert path.read_bytes() == once


@law
@given(tables)
def test_step_zero_starts_anew(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        written(path, rows)
        written(path, [])
        assert read(path) == [HEADER]


def test_a_row_is_in_the_file_before_add_returns(tmp_path):
    table = StepTable(tmp_path / "a.csv", HEADER, 0)
    table.add([[1, "loss", 0.5]])
    assert read(tmp_path / "a.csv") == [HEADER, ["1", "loss", "0.5"]]
    table.close()


def test_a_row_torn_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,name,value\n1,loss,0.5\n2,lo")
    written(path, [[3, "loss", 0.25]], step=2)
    assert read(path) == [HEADER, ["1", "loss", "0.5"], ["3", "loss", "0.25"]]


def test_the_old_table_is_replaced_in_one_go_and_leaves_no_litter(tmp_path):
    written(tmp_path / "a.csv", [[1, "loss", 0.5]])
    with (tmp_path / "a.csv").open() as reader:
        written(tmp_path / "a.csv", [], step=1)
        assert reader.read() == "step,name,value\n1,loss,0.5\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
