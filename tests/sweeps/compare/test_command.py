"""What the table says: order, means over seeds, what differs, what is not done."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics

import pytest

from launcher.runtime.plan import Parent
from launcher.runtime.sweepdir import SweepDir
from sweeps.__main__ import main
from sweeps.compare.picture import mean_of
from tests.sweeps.compare.made_runs import made_grid, made_run


def settings(answer):
    return [(s["rank"], s["mean"], s["n"]) for s in answer["settings"]]


def test_settings_are_ranked_by_their_mean_over_seeds(folder, answer):
    for seed, loss in enumerate([1.0, 1.4, 1.5]):
        made_run(folder, loss, optim__lr=0.1, trainer__seed=seed)
    made_run(folder, 1.2, optim__lr=0.2)
    told = answer(folder)
    assert told["metric"] == "best_val_loss" and told["direction"] == "min"
    assert settings(told) == [(1, 1.2, 1), (2, pytest.approx(1.3), 3)]
    assert told["settings"][0]["spread"] is None
    assert told["settings"][1]["spread"] == pytest.approx(statistics.stdev([1.0, 1.4, 1.5]))
    assert [column["name"] for column in told["columns"]] == ["lr", "trainer.seed"]


def test_the_table_shows_what_differs_and_nothing_else(folder, compare):
    made_grid(folder)
    code, lines, said = compare(folder)
    assert (code, said) == (0, [])
    assert lines[:4] == [
        "demo: 4 COMPLETED runs of 2 settings, by best_val_loss, smallest first",
        "#  best_val_loss       ±  n     lr  best run",
        f"1          1.005  0.0071  2  0.001  {answer_run(folder, 1.0)}",
        f"2          3.005  0.0071  2  0.003  {answer_run(folder, 3.0)}",
    ]
    assert lines[-2].split(None, 2) == ["lr", "?", "too few runs: 4 for 2 values; repeat values, or add seeds"]


def test_a_child_is_told_apart_from_the_same_config_from_scratch(folder, compare):
    origin = made_run(folder, 3.0, trainer__max_steps=10).path
    made_run(folder, 2.0, trainer__max_steps=20)
    parent = Parent(run_id=origin.name, path=str(origin), step=10, checkpoint="step-000000000010.a0001")
    made_run(folder, 1.0, trainer__max_steps=20, parent=parent)
    _, lines, _ = compare(folder)
    assert lines[0].startswith("demo: 3 COMPLETED runs of 3 settings")
    assert lines[1].split()[4:6] == ["max_steps", "parent"]
    assert [line.split()[4] for line in lines[2:5]] == [origin.name, "–", "–"]


def answer_run(folder, loss):
    found = (SweepDir(folder).run(run) for run in SweepDir(folder).list_runs())
    return next(r.path.name for r in found if json.loads(r.summary.read_text())["best_val_loss"] == loss)


def test_the_table_says_what_mattered(folder, compare):
    made_grid(folder, seeds=3)
    lines = compare(folder)[1]
    assert lines[-2].split() == ["lr", ">99%", "█" * 20, "6", "runs,", "2", "values"]
    assert lines[-1].split() == ["trainer.seed", "0%", "6", "runs,", "3", "values"]


def test_settings_that_changed_together_are_told_as_one(folder, compare):
    for seed in range(3):
        made_run(folder, 1.0 + seed / 100, trainer__seed=seed)
        made_run(folder, 2.0 + seed / 100, trainer__seed=seed, optim__lr=0.5, model__n_layer=4)
    told = [line for line in compare(folder)[1] if "always changed together" in line]
    assert len(told) == 1 and told[0].startswith("n_layer") and "together with lr: which of them" in told[0]


def test_members_are_shown_with_their_seeds_when_asked_for(folder, compare):
    made_grid(folder)
    _, lines, _ = compare(folder, "--runs")
    assert lines[1].split() == ["#", "best_val_loss", "mean", "±", "n", "lr", "trainer.seed", "run"]
    assert [line.split()[:2] for line in lines[2:6]] == [["1", "1"], ["1", "1.01"], ["2", "3"], ["2", "3.01"]]


def test_only_some_lines_unless_all_are_asked_for(folder, compare):
    made_grid(folder, rates=tuple(i / 1000 for i in range(1, 26)), seeds=1)
    assert "and 5 more (--all)" in compare(folder)[1]
    assert "and 22 more (--all)" in compare(folder, "--top", 3)[1]
    everything = compare(folder, "--all")[1]
    assert not any("--all" in line for line in everything) and len(everything) > 27
    with pytest.raises(SystemExit):
        main(["compare", str(folder), "--top", "0"])


def test_a_run_that_is_not_done_is_listed_with_its_state_and_where_it_stands(folder, compare, answer):
    made_grid(folder)
    running = made_run(folder, state="RUNNING", curve={10: 0.5, 20: 0.7}, optim__lr=0.5)
    _, lines, said = compare(folder)
    [line] = [line for line in lines if running.path.name in line]
    assert line.split()[:4] == [running.path.name, "RUNNING", "~0.5", "20"]
    assert lines.index(line) > lines.index("not COMPLETED, not ranked: 1")
    assert said == ["note: 1 run is not ranked; the best_val_loss beside it, marked ~, is where it stood last"]
    [record] = [r for r in answer(folder)["runs"] if r["run"] == running.path.name]
    assert (record["rank"], record["value"], record["partial"], record["state"]) == (None, 0.5, True, "RUNNING")


@pytest.mark.parametrize("state", ["FAILED", "PREEMPTED", "CANCELLED", "STALLED", "SUBMITTED", "PLANNED"])
def test_no_state_is_dropped(folder, answer, state):
    made_run(folder, 1.0)
    made_run(folder, state=state, optim__lr=0.5)
    assert sorted(run["state"] for run in answer(folder)["runs"]) == sorted(["COMPLETED", state])


def test_a_member_that_was_never_planned_is_listed(folder, answer):
    made_run(folder, 1.0)
    SweepDir(folder).add_members([("abcdefabcdef", ("optim.lr=1",))])
    assert [(r["run"], r["state"]) for r in answer(folder)["runs"] if r["rank"] is None] == [
        ("abcdefabcdef", "PLANNED")
    ]


def test_execution_settings_differ_too_under_the_names_that_users_type(folder, answer):
    made_run(folder, 1.0, x__task__trainer__val_every=5)
    made_run(folder, 2.0, x__hardware__device="cuda")
    assert [c["key"] for c in answer(folder)["columns"]] == ["hardware.device", "trainer.val_every"]


def test_another_split_is_another_setting_and_no_seed(folder, answer):
    made_run(folder, 1.0)
    made_run(folder, 2.0, data__split_seed=1)
    assert len(answer(folder)["settings"]) == 2


def test_data_drawn_from_another_seed_are_a_repetition(folder, answer):
    made_run(folder, 1.0)
    made_run(folder, 2.0, data__seed=1, data__digest="d1")
    told = answer(folder)
    assert settings(told) == [(1, 1.5, 2)] and [c["key"] for c in told["columns"]] == ["data.seed"]


def test_other_data_are_another_setting(folder, answer):
    made_run(folder, 1.0)
    made_run(folder, 2.0, data__digest="d1")
    told = answer(folder)
    assert len(told["settings"]) == 2 and [c["key"] for c in told["columns"]] == ["data.digest"]


def test_options_that_only_one_kind_has_are_no_column(folder, answer):
    made_run(folder, 1.0, optim__lr=0.1)
    made_run(folder, 1.0, optim__lr=0.2)
    made_run(folder, 2.0, optim__kind="sgd", optim__momentum=0.9)
    made_run(folder, 2.1, optim__kind="sgd", optim__momentum=0.9, optim__lr=0.2)
    assert [c["name"] for c in answer(folder)["columns"]] == ["optim.kind", "lr"]


def test_folders_may_be_runs_sweeps_and_roots_and_each_run_counts_once(tmp_path, answer):
    first, *_ = made_grid(tmp_path / "runs" / "a")
    made_run(tmp_path / "runs" / "b", 9.0, optim__lr=9)
    assert len(answer(first.path)["runs"]) == 1
    assert len(answer(tmp_path / "runs" / "a", first.path)["runs"]) == 4
    told = answer(tmp_path / "runs", tmp_path / "runs" / "b")
    assert len(told["runs"]) == 5 and told["title"] == "a, b"


def test_the_same_run_in_two_sweeps_is_no_second_seed(tmp_path, answer):
    for name in ("a", "b"):
        made_run(tmp_path / name, 1.0)
    told = answer(tmp_path / "a", tmp_path / "b")
    assert settings(told) == [(1, 1.0, 1)]
    assert told["notes"] == ["1 run is there twice, in other sweeps: each counts once"]


def test_runs_of_other_tasks_and_code_are_said(folder, answer):
    made_run(folder, 1.0, code="a")
    made_run(folder, 2.0, code="b", task="mine:train", mine__width=3)
    told = answer(folder)
    assert [c["key"] for c in told["columns"]] == ["task.target"]
    assert told["notes"] == [
        "runs of 2 tasks (mine:train, vlm.task:train): their metrics may mean different things",
        "the runs were planned with 2 states of the code",
    ]


def test_csv_has_every_run_with_plain_numbers(folder, compare, tmp_path):
    runs = made_grid(folder)
    running = made_run(folder, state="RUNNING", optim__lr=1e-7)
    assert compare(folder, "--csv", tmp_path / "a.csv")[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len(rows) == 5 and {row["run"] for row in rows} == {r.path.name for r in (*runs, running)}
    assert [float(row["best_val_loss"]) for row in rows[:2]] == [1.0, 1.01]
    assert rows[0]["optim.lr"] == "0.001" and rows[0]["n"] == "2" and float(rows[0]["mean"]) == 1.005
    assert (rows[4]["rank"], rows[4]["partial"], float(rows[4]["optim.lr"])) == ("", "true", 1e-7)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["min", "max"])
def test_what_is_not_finite_is_ranked_last_and_said(folder, answer, value, direction):
    for seed, loss in enumerate([0.1, value]):
        made_run(folder, loss, optim__lr=0.1, trainer__seed=seed)
    made_run(folder, 5.0, optim__lr=0.2)
    told = answer(folder, "--direction", direction)
    assert [s["mean"] for s in told["settings"]] == [5.0, "nan"]
    assert told["notes"] == ["1 of 3 COMPLETED runs have a best_val_loss that is not finite: ranked last"]


def test_a_run_without_the_number_is_ranked_last_and_said(folder, answer):
    made_run(folder, None, optim__lr=0.1)
    made_run(folder, 5.0, optim__lr=0.2)
    told = answer(folder)
    assert [s["mean"] for s in told["settings"]] == [5.0, None]
    assert told["notes"] == ["1 of 2 COMPLETED runs have no best_val_loss: ranked last"]


def test_nothing_that_steers_a_terminal_reaches_it(folder, compare):
    made_run(folder, 1.0, data__kind="\x1b[31mred\x07")
    made_run(folder, 2.0)
    assert "\x1b" not in "".join(compare(folder)[1])


def test_the_picture_is_one_and_the_same(folder, compare, tmp_path):
    from PIL import Image

    made_grid(folder, rates=tuple(i / 1000 for i in range(1, 9)))
    made_run(folder, state="RUNNING", optim__lr=1, curve={10: math.nan, 20: 3.0})
    for name in ("a.png", "b.png"):
        assert compare(folder, "--plot", tmp_path / name)[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (0, 114, 178) in colours and len(colours) > 50


def test_the_mean_over_seeds_is_drawn_where_all_of_them_have_a_value():
    assert mean_of([([1, 2, 4], [1.0, 2.0, 3.0])]) == ([1, 2, 4], [1.0, 2.0, 3.0])
    assert mean_of([([1, 2, 4], [1.0, 2.0, 3.0]), ([2, 3, 4], [4.0, 9.0, 5.0])]) == ([2, 4], [3.0, 4.0])
    assert mean_of([([1], [1.0]), ([], [])]) == ([], [])
