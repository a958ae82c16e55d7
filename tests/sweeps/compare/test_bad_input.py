"""What cannot be compared is said in one line; what is torn hides nothing else."""

from __future__ import annotations

import json
import math

import pytest

from launcher.runtime.files import write_json
from launcher.runtime.sweepdir import SweepDir
from tests.sweeps.compare.made_runs import made_grid, made_run


def test_no_folder_and_no_run(tmp_path, refused):
    assert f"{tmp_path}/x: there is no such folder" in refused(tmp_path / "x")
    assert f"{tmp_path}: holds no run" in refused(tmp_path)


def test_a_metric_that_no_run_has_names_those_that_exist_nearest_first(folder, refused):
    made_grid(folder)
    told = refused(folder, "--metric", "best_val_los")
    assert "metric 'best_val_los': no run has it; did you mean 'best_val_loss'? (there are: best_val_loss, " in told
    assert all(name in told for name in ("train_loss", "samples_per_s", "val/loss", "train/loss"))
    assert "no run has it" in refused(folder, "--metric", "best_val_loss:best"), "a number has no best"
    assert "did you mean 'val/loss'" in refused(folder, "--metric", "val/los:best")


def test_no_number_at_all(folder, refused):
    run = made_run(folder, state="PLANNED")
    run.metrics.unlink()
    run.status.unlink()
    assert "(there are: none at all: nothing was logged yet)" in refused(folder)


@pytest.mark.parametrize("name", ["plan", "summary"])
@pytest.mark.parametrize("content", ["", '{"science": {"opt', "[1, 2]", '{"science": 3}', "\udcff"])
def test_a_torn_file_lists_its_run_with_the_problem(folder, answer, name, content):
    made_grid(folder)
    torn = made_run(folder, 0.5, optim__lr=0.5)
    getattr(torn, name).write_bytes(content.encode(errors="surrogateescape"))
    told = answer(folder)
    [record] = [run for run in told["runs"] if run["run"] == torn.path.name]
    if name == "summary" and content.startswith('{"science": 3'):  # whole, and without the metric
        assert record["rank"] == 3 and record["value"] is None
        return
    assert record["rank"] is None and len(told["settings"]) == 2
    assert any(str(getattr(torn, name)) in problem for problem in record["problems"])
    assert any(str(getattr(torn, name)) in note for note in told["notes"])


@pytest.mark.parametrize("science", [3, None, [1], "x"])
def test_a_plan_of_something_else_is_a_problem_of_its_run(folder, answer, science):
    made_grid(folder)
    odd = made_run(folder, 0.5, optim__lr=0.5)
    odd.plan.write_text(json.dumps(json.loads(odd.plan.read_text()) | {"science": science}))
    [record] = [run for run in answer(folder)["runs"] if run["run"] == odd.path.name]
    assert record["rank"] is None and "is damaged, or another version's" in record["problems"][0]


def test_a_torn_status_says_no_more_than_the_summary(folder, answer):
    for run in made_grid(folder):
        run.status.write_text('{"state": "RUNN')
    assert [s["n"] for s in answer(folder)["settings"]] == [2, 2]


def test_a_torn_row_of_metrics_is_passed_over(folder, answer):
    for run in made_grid(folder):
        with run.metrics.open("a") as file:
            file.write("x,y\n30,val,loss,oops\n\n40,val,loss,0.0")
    assert [s["mean"] for s in answer(folder, "--metric", "val/loss")["settings"]] == [1.005, 3.005]


def test_metrics_that_are_no_text_hide_nothing(folder, answer):
    first, *_ = made_grid(folder)
    first.metrics.write_bytes(b"\x00\xff\xfe" * 100)
    assert len(answer(folder)["runs"]) == 4


@pytest.mark.parametrize("requests", ["{", '{"requests": 3}', '{"requests": [3, {"metric": 4}]}', '{"requests": null}'])
def test_requests_that_are_torn_leave_the_usual_metric(folder, answer, requests):
    made_grid(folder)
    SweepDir(folder).requests.write_text(requests)
    assert answer(folder)["metric"] == "best_val_loss"


def test_sweeps_that_were_asked_for_different_metrics(tmp_path, refused, answer):
    for name, metric in (("a", "train_loss"), ("b", "samples_per_s")):
        made_grid(tmp_path / name)
        write_json(SweepDir(tmp_path / name).requests, {"requests": [{"metric": metric, "direction": "maximize"}]})
    assert "choose one with --metric NAME" in refused(tmp_path)
    assert answer(tmp_path, "--metric", "samples_per_s")["direction"] == "max"


@pytest.mark.parametrize("option", ["--csv", "--plot", "--html"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_read(folder, tmp_path, refused, option):
    made_grid(folder)
    assert f"{option} {tmp_path}/no/a: there is no folder" in refused(folder, option, tmp_path / "no" / "a")
    assert f"{option} {tmp_path}: is a folder" in refused(folder, option, tmp_path)


@pytest.mark.parametrize(
    "value", ["$x_{$", "\\frac", "日本語", "a\nb\x1b[31m", "", "=1+1", "x" * 5000, math.nan, math.inf, 10**400]
)
def test_odd_settings_break_no_output(folder, tmp_path, compare, value):
    for lr, loss in ((1, 1.0), (value, 2.0)):
        made_run(folder, loss, optim__lr=lr, trainer__seed=0)
        made_run(folder, loss, optim__lr=lr, trainer__seed=1)
    files = [word for kind in ("csv", "plot", "html") for word in (f"--{kind}", tmp_path / f"a.{kind}")]
    code, lines, said = compare(folder, *files)
    assert (
        code == 0
        and len(said) == 3
        and lines[0].endswith("4 COMPLETED runs of 2 settings, by best_val_loss, smallest first")
    )
    assert "\x1b" not in "".join(lines)
    assert compare(folder, "--json")[0] == 0


def test_a_name_that_is_no_text_breaks_no_output(tmp_path, compare):
    folder = tmp_path / "caf\udce9"
    made_run(folder, 1.0)
    made_run(folder, 2.0, optim__lr=1)
    files = [word for kind in ("csv", "plot", "html") for word in (f"--{kind}", tmp_path / f"a.{kind}")]
    assert compare(folder, *files)[0] == 0


@pytest.mark.parametrize("loss", [10**400, "1.0", [1.0], True], ids=["huge", "text", "list", "true"])
def test_an_odd_number_is_none_or_not_finite(folder, answer, loss):
    made_grid(folder)
    odd = made_run(folder, 0.5, optim__lr=0.5)
    odd.summary.write_text(json.dumps({"status": "COMPLETED", "best_val_loss": loss}))
    told = answer(folder)
    assert [s["mean"] for s in told["settings"]] == [1.005, 3.005, "nan" if loss == 10**400 else None]


def test_no_curve_is_no_picture(folder, tmp_path, compare):
    for run in made_grid(folder):
        run.metrics.unlink()
    code, _, said = compare(folder, "--plot", tmp_path / "a.png")
    assert code == 1 and said == ["error: --plot: no run has logged a curve; there is nothing to draw"]
    assert not (tmp_path / "a.png").exists()
