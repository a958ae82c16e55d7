"""What a run looks like from its first line to its last: on a terminal, and where there is none."""

from __future__ import annotations

import json
import re

import pytest

from launcher.final_numbers import say_outcome
from launcher.runtime.errors import ExitCode
from launcher.runtime.job import Outcome
from launcher.runtime.rundir import RunDir
from tests.conftest import SMALL
from tests.on_terminal import on_terminal

RUN = ("-m", "launcher.run", *SMALL, "launch.name=seen", "data.cache_dir=cache")
SUMMARY = {
    "status": "COMPLETED", "step": 1500, "train_loss": 0.123456789, "val_loss": None, "mfu": 0.4321,
    "peak_memory_bytes": 412_345_678, "flops_per_sample": 1.5e9, "weights_sha256": "ba" * 32,
}  # fmt: skip

TELL = f"""
from pathlib import Path
from launcher.final_numbers import say_outcome
from launcher.runtime.job import Outcome
from launcher.runtime.rundir import RunDir
say_outcome(RunDir(Path("runs/demo/abc")), Outcome("COMPLETED", 0, {SUMMARY}))
"""


def test_without_a_terminal_the_numbers_are_aligned_lines(tmp_path, capsys):
    say_outcome(RunDir(tmp_path), Outcome("COMPLETED", ExitCode.DONE, SUMMARY))
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    assert out.splitlines() == [
        f"COMPLETED: {tmp_path}",
        "  step               1500",
        "  train_loss         0.12346",
        "  mfu                0.4321",
        "  peak_memory_bytes  412345678",
        "  flops_per_sample   1.5e+09",
        f"  weights_sha256     {'ba' * 32}",
    ]


def test_a_run_that_was_stopped_has_no_numbers(tmp_path, capsys):
    say_outcome(RunDir(tmp_path), Outcome("PREEMPTED", ExitCode.STOPPED_SAVED, {}))
    assert capsys.readouterr().out == f"PREEMPTED: {tmp_path}\ncontinue it with the same command\n"


def test_on_a_terminal_they_are_a_table_for_people(tmp_path):
    code, seen = on_terminal(tmp_path, ["-c", TELL], columns=80)
    assert code == 0 and "\x1b[36m" in seen
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert plain.splitlines()[0] == "COMPLETED: runs/demo/abc"
    assert "│ step " in plain and "1,500 │" in plain and "43.2% │" in plain and "412.3 MB │" in plain
    assert "1.5 GFLOP │" in plain and "bab… │" in plain and max(map(len, plain.splitlines())) <= 80


def test_colours_are_left_out_where_somebody_wants_none(tmp_path):
    code, seen = on_terminal(tmp_path, ["-c", TELL], {"NO_COLOR": "1"})
    assert code == 0 and "│" in seen and not re.search(r"\x1b\[[0-9;]*3[0-9]", seen)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path):
    code, seen = on_terminal(tmp_path, ["-c", TELL], {"TERM": "dumb"})
    assert code == 0 and "\x1b" not in seen and "  step               1500" in seen


def test_on_a_terminal_a_run_shows_its_config_a_bar_and_its_numbers(tmp_path):
    code, seen = on_terminal(tmp_path, RUN, columns=120)
    assert code == 0, seen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    (run,) = (tmp_path / "runs" / "seen").iterdir()
    tree, bar, end = (plain.index(words) for words in (f"config of {run.name}", "6/6", f"COMPLETED: {run}"))
    assert tree < bar < end
    for words in ("├── model n_embd=16", "optim kind=adamw", "└── hardware device=", f"run {run.name}: 6 steps on cpu"):
        assert words in plain
    last = plain[plain.rindex("6/6") : plain.index("COMPLETED")]
    assert re.match(r"6/6 .* epoch 0\.\d\d  loss \d\.\d{4}  val \d\.\d{4}  \d+ samples/s 00:00 left", last), last
    assert "│ train_loss" in plain[end:]


def test_without_a_terminal_a_run_says_little_on_stderr_and_its_numbers_on_stdout(command, tmp_path):
    done = command(*RUN)
    assert done.returncode == 0 and "\x1b" not in done.stderr + done.stdout
    (run,) = (tmp_path / "runs" / "seen").iterdir()
    first = f"run {run.name}: 6 steps on cpu, in {run}"
    assert [line.partition(" ")[2] for line in done.stderr.splitlines()].count(first) == 1
    assert "config of" not in done.stderr and len(done.stderr.splitlines()) < 10
    assert done.stdout.splitlines()[0] == f"COMPLETED: {run}"
    told = dict(line.split(None, 1) for line in done.stdout.splitlines() if re.match(r"  \w+ +\S", line))
    summary = json.loads((run / "summary.json").read_text())
    assert told.keys() >= {"tokens_per_s", "mfu", "flops_per_sample", "peak_memory_bytes", "peak_tflops"}
    assert float(told["mfu"]) == pytest.approx(summary["mfu"], rel=1e-4)
