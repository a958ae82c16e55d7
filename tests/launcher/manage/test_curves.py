"""``python -m launcher curves``: pictures of runs that were packed."""

from __future__ import annotations

import pytest

from launcher.__main__ import main
from tests.launcher.made_sweep import MadeSweep

HEADER = "step,split,name,value\n"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Three runs: one with losses and times, one with losses, one without metrics."""
    monkeypatch.chdir(tmp_path)
    made = MadeSweep(tmp_path / "runs" / "demo")
    losses = "".join(f"{step},train,loss,{1 / step}\n" for step in (1, 2, 3))
    for run, text in (("aaa", HEADER + losses + "1,time,total,0.5\n"), ("bbb", HEADER + losses), ("ccc", None)):
        rundir = made.run(run)
        if text is not None:
            rundir.metrics.write_text(text)
    return made


def pictures(sweep):
    return sorted(str(path.relative_to(sweep.dir.path)) for path in sweep.dir.path.glob("*/*.png"))


@pytest.mark.parametrize("word", ["runs/demo", "runs"])
def test_each_run_of_a_sweep_or_a_root_has_its_pictures_then(sweep, capsys, word):
    assert main(["curves", word]) == 0
    assert pictures(sweep) == ["aaa/loss_curve.png", "aaa/timing_curve.png", "bbb/loss_curve.png"]
    assert (sweep.dir.run("aaa").loss_curve.read_bytes())[1:4] == b"PNG"
    out, err = capsys.readouterr()
    assert "aaa: loss_curve.png timing_curve.png" in out and "bbb: loss_curve.png" in out
    assert "ccc: nothing to draw, it has logged no loss" in err and "drew curves of 2 runs, 0 had them already" in err


def test_what_is_drawn_is_left_as_it_is(sweep, capsys):
    assert main(["curves", "aaa"]) == 0
    sweep.dir.run("aaa").loss_curve.write_bytes(b"mine")
    capsys.readouterr()
    assert main(["curves", "aaa"]) == 0
    assert sweep.dir.run("aaa").loss_curve.read_bytes() == b"mine" and pictures(sweep) == [
        "aaa/loss_curve.png",
        "aaa/timing_curve.png",
    ]
    assert "drew curves of 0 runs, 1 had them already" in capsys.readouterr().err


def test_metrics_that_cannot_be_read_are_named_and_the_others_drawn(sweep, capsys):
    sweep.dir.run("aaa").metrics.unlink()
    sweep.dir.run("aaa").metrics.mkdir()
    assert main(["curves", "runs/demo"]) == 1
    assert pictures(sweep) == ["bbb/loss_curve.png"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == "error: runs/demo/aaa: curves: Is a directory"


def test_a_table_without_a_loss_is_told(sweep, capsys):
    sweep.dir.run("aaa").metrics.write_text("not,a,table\n1,2,3\n")
    assert main(["curves", "aaa"]) == 0
    assert "nothing to draw" in capsys.readouterr().err and pictures(sweep) == []


def test_a_word_for_no_run_is_one_line(sweep, capsys):
    assert main(["curves", "nope"]) == 1
    assert "no run or job" in capsys.readouterr().err
