"""The two pictures of a run."""

from __future__ import annotations

import pytest
from PIL import Image

from launcher.runtime.curves import draw_curves, read_series
from launcher.runtime.rundir import RunDir

PICTURES = {"loss_curve.png", "timing_curve.png"}


@pytest.fixture
def drawn(tmp_path):
    """``drawn(row, …)``: names of the pictures made of these rows of ``metrics.csv``, each of which is a picture."""

    def draw(*rows: str) -> set[str]:
        rundir = RunDir(tmp_path)
        rundir.metrics.write_text("\n".join(["step,split,name,value", *rows]) + "\n")
        draw_curves(rundir)
        made = {path.name for path in tmp_path.iterdir()} - {"metrics.csv"}
        for name in made:
            with Image.open(tmp_path / name) as picture:
                picture.load()
                assert picture.width > 200
                assert len(picture.convert("RGB").getcolors(1 << 20)) > 2, "an empty picture"
        return made

    return draw


def test_losses_and_timings_are_a_picture_each(drawn):
    assert drawn("1,train,loss,2.0", "2,train,loss,1.5", "2,val,loss,1.7", "2,time,total,0.1") == PICTURES


@pytest.mark.parametrize(
    ("row", "made"),
    [("1,train,loss,2.0", {"loss_curve.png"}), ("1,time,data,0.1", {"timing_curve.png"}), ("1,train,lr,0.1", set())],
)
def test_what_has_no_points_is_not_drawn(drawn, row, made):
    assert drawn(row) == made


@pytest.mark.parametrize("values", ["nan 1.0", "inf 1.0", "nan nan", "-inf inf", "0.0 0.0", "1e-30 1e30"])
def test_a_run_that_diverged_is_drawn_all_the_same(drawn, values):
    assert drawn(*(f"{step},train,loss,{value}" for step, value in enumerate(values.split()))) == {"loss_curve.png"}


def test_a_table_without_rows_gives_no_picture(drawn):
    assert drawn() == set()


def test_series_hold_the_steps_and_values_of_each_name_in_order(tmp_path):
    (tmp_path / "m.csv").write_text("step,split,name,value\n1,train,loss,2.5\n1,train,lr,0.1\n3,train,loss,nan\n")
    series = read_series(tmp_path / "m.csv")
    assert series.keys() == {"train/loss", "train/lr"}
    assert series["train/lr"] == ([1], [0.1])
    steps, values = series["train/loss"]
    assert steps == [1, 3]
    assert values[0] == 2.5
    assert values[1] != values[1]
