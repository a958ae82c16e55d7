"""The benchmarks measure what they say; how fast is for a person to read, never for a test to judge."""

from __future__ import annotations

import json

import pytest

from sweeps.__main__ import main
from sweeps.bench.report import interleaved, ratio


def rows(capsys, *words):
    assert main(["bench", *words, "--json"]) == 0
    return [json.loads(line)["rows"] for line in capsys.readouterr().out.splitlines()]


def test_step_compares_both_sides_and_their_losses(capsys):
    speeds, losses = rows(capsys, "step", "--rounds", "1", "--batch", "2", "--text", "8", "--dropout", "0.1", "0")
    assert [(r["dropout"], r["precision"]) for r in speeds] == [
        (0.1, "fp32"),
        (0.1, "bf16"),
        (0.0, "fp32"),
        (0.0, "bf16"),
    ]
    assert all(r["plain_ms"] > 0 and r["ours_ms"] > 0 and r["times_faster"] > 0 for r in speeds)
    assert losses[0]["largest_difference"] < 1e-4


def test_ranks_that_talk_are_held_against_ranks_that_do_not(capfd):
    ((row,),) = rows(capfd, "ranks", "--rounds", "1", "--steps", "1", "--batch", "2", "--text", "8")
    assert row["ranks"] == 2 and row["efficiency"] > 0
    assert row["together_samples_per_s"] > 0 and row["apart_samples_per_s"] > 0


def test_loader_reads_the_same_pixels(capsys):
    ((row,),) = rows(capsys, "loader", "--rows", "20", "--rounds", "1")
    assert row["pixels_identical"] and row["naive_images_per_s"] > 0 and row["ours_images_per_s"] > 0


def test_memory_of_a_small_file(capsys):
    ((row,),) = rows(capsys, "memory", "--rows", "200")
    assert row["rows"] == 200 and 0 <= row["above_imports_mb"] < 300 and row["imports_mb"] > 20


def test_compare_writes_all_its_files(capsys):
    ((row,),) = rows(capsys, "compare", "--members", "8")
    assert row["runs"] == 8 and row["seconds"] > 0 and row["peak_mb"] > 20
    assert row["csv_mb"] > 0 and row["plot_mb"] > 0 and row["html_mb"] > 0


def test_help_imports_no_torch(capsys):
    ((row,),) = rows(capsys, "help", "--rounds", "1")
    assert not row["torch_imported"] and row["times_longer"] > 0


def test_a_sweep_that_is_done_is_left_alone(capsys):
    ((row,),) = rows(capsys, "rerun", "--members", "3", "--rounds", "1")
    assert row["members"] == 3 and row["first_s"] > 0 and row["again_s"] > 0 and row["decision_s"] > 0
    assert row["slurm_calls"] == row["sbatch_calls"] == row["files_written"] == 0


def test_a_profiler_that_waits_costs_next_to_nothing(capsys):
    ((row,),) = rows(capsys, "profiler", "--rounds", "2", "--batch", "1", "--text", "8")
    assert 0 < row["waiting_percent"] < 1 and row["step_times_longer"] > 0 and row["recording_times_longer"] > 0


@pytest.mark.slow
def test_all_trackers_at_once_are_held_against_none(capsys):
    ((row,),) = rows(capsys, "trackers", "--rounds", "1", "--steps", "20", "--batch", "1", "--text", "8")
    assert row["step_ms"] > 0 and row["log_ms"] > 0 and row["log_percent"] > 0 and row["log_with_picture_ms"] > 0


def test_a_large_trace_is_told(capfd):
    ((row,),) = rows(capfd, "trace", "--mb", "4")
    assert row["trace_mb"] >= 4 and row["steps"] % 3 == 0 and row["seconds"] > 0 and row["peak_mb"] > 20


def test_sides_take_turns_and_the_ratio_is_by_pairs():
    calls = []
    interleaved(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert calls == ["a", "b"] * 3
    assert ratio([2, 30, 8], [1, 10, 2]) == 3


@pytest.mark.parametrize("words", [[], ["bench"], ["bench", "step"], ["compare"]])
def test_every_command_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0 and "usage: python -m sweeps" in capsys.readouterr().out
