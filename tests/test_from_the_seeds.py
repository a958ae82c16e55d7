"""What the README says of the seeds: each key fits, each command is one, each feature is shown by a test."""

from __future__ import annotations

import ast
import csv
import os
import re
from collections.abc import Iterator

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from launcher.plan import read_sections
from launcher.runtime.sections import flat
from tests.conftest import PHOTOS, REPOSITORY, compose_values, type_here

HEADING = "## From the seeds' way to ours"
SPAN = re.compile(r"`([^`]+)`")
KEYS = re.compile(r"[a-z_/.]+=\S+( [a-z_/.]+=\S+)*")
ALL_IN_ONE = "tests/test_from_the_seeds.py::test_one_run_leaves_all_that_the_seeds_left"
SHOWN = {
    "rutledge": "tests/launcher/test_experiments.py::test_the_seeds_experiments_run_on_real_pictures",
    "enigma": ALL_IN_ONE,
    "a copy of the YAML": "tests/launcher/test_run.py::test_a_sweep_trains_each_member_and_keeps_weights_only",
    "`precision_mode": "tests/vlm/test_precision.py::test_matrices_multiply_in_the_precision_asked_for",
    "`grad_scaler_enabled`": "tests/vlm/test_precision.py::test_fp16_scales_grows_and_skips_overflows",
    "`hyperparameter_tuning`": "tests/sweeps/study/test_command.py::test_the_shipped_search_fits",
    "`optuna-dashboard": "tests/sweeps/study/test_dashboard.py::test_the_dashboard_lists_the_study",
    "`torch.multiprocessing`": "tests/launcher/test_run.py::test_two_ranks_on_this_machine_train_one_run",
    "a CSV file": "tests/launcher/test_experiments.py::test_the_seeds_experiments_run_on_real_pictures",
    "`.pth`": "tests/vlm/test_doors.py::test_a_converted_seed_keeps_its_numbers_and_captions_pictures",
    "a log line": ALL_IN_ONE,
    "`losses_log.csv`": ALL_IN_ONE,
    "`timing_logs.csv`": ALL_IN_ONE,
    "`mlflow ui`": ALL_IN_ONE,
    "`--log_wandb true`": "tests/launcher/runtime/trackers/test_wandb_run.py::",
    "`torch.profiler": ALL_IN_ONE,
    "`record_shapes`": ALL_IN_ONE,
    "`tensorboard_trace_handler": ALL_IN_ONE,
    "`top100_trace": ALL_IN_ONE,
    "bottlenecks": "tests/vlm/test_trace.py::test_the_bottleneck_that_was_put_in_is_named_first",
}
"""How a row begins: the test (or the file of tests) that shows what it is about. The other rows are keys alone."""


def rows() -> list[tuple[str, str]]:
    """Both columns of each row of the table."""
    section = (REPOSITORY / "README.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [(there.strip(), here.strip()) for there, here in cells[1:]]


def spans() -> Iterator[str]:
    """What the right column has in backticks."""
    for _, here in rows():
        yield from SPAN.findall(here)


def typed(span: str) -> list[str] | None:
    """The overrides that ``span`` is, alone or behind ``python -m launcher.run``; None: it is something else."""
    words = span.removeprefix("python -m launcher.run ").removeprefix("-m ")
    return words.split(" ") if KEYS.fullmatch(words) else None


@pytest.mark.parametrize("words", [words for span in spans() if (words := typed(span))], ids=" ".join)
def test_each_key_of_the_table_fits(words):
    first = [word.partition(",")[0] if "[" not in word else word for word in words]
    data = [] if any(word.startswith("data.path") for word in first) else ["data.path=x.csv"]
    is_csv = any(word in ("data=csv", "experiment=seemore_enigma", "experiment=seemore_rutledge") for word in first)
    values = compose_values(*first, *(data if is_csv else []))
    read_sections(values)
    overrides = [word for word in OverridesParser.create().parse_overrides(first) if "." in word.key_or_group]
    assert {word.key_or_group: flat(values)[word.key_or_group] for word in overrides} == {
        word.key_or_group: word.value() for word in overrides
    }


@pytest.mark.parametrize(
    "span", [s for s in spans() if s.startswith("python -m ") and not s.startswith("python -m launcher.run")]
)
def test_each_command_of_the_table_is_one(span, tmp_path):
    door, *words = span.split(" ")[2:]
    (tmp_path / "RUN").mkdir()
    said = type_here(tmp_path, dict(os.environ), *words, "--help", door=f"{door}.__main__")
    assert said.returncode == 0 and said.stdout.startswith("usage: ")
    for option in (word for word in words if word.startswith("--")):
        assert option in said.stdout


def test_each_row_is_keys_that_fit_or_shown_by_a_test():
    unshown = [there for there, here in rows() if not any(map(typed, SPAN.findall(here))) and not _shown_by(there)]
    assert not unshown
    assert not [start for start in SHOWN if not any(there.startswith(start) for there, _ in rows())]
    for name in SHOWN.values():
        file, _, function = name.partition("::")
        tree = ast.parse((REPOSITORY / file).read_text())
        assert not function or function in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, name


def _shown_by(there: str) -> str | None:
    return next((test for start, test in SHOWN.items() if there.startswith(start)), None)


@pytest.mark.slow
def test_one_run_leaves_all_that_the_seeds_left(command, tmp_path):
    """The second seed's experiment with all that it recorded, in one command, and what is asked of it afterwards."""
    profiler = ("wait=1", "warmup=1", "active=3", "repeat=1", "shapes=true", "stacks=true", "flops=true")
    done = command(
        "-m", "launcher.run", "experiment=seemore_enigma", f"data.path={PHOTOS}", "launch.name=enigma",
        "tracker=[tensorboard,mlflow]", "profiler=steps", *(f"profiler.{word}" for word in profiler),
        "trainer.max_steps=8", "trainer.val_every=4", "trainer.log_every=2", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "runs" / "enigma").glob("*/summary.json"))
    for picture in ("loss_curve.png", "timing_curve.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    losses, timings = (
        list(csv.DictReader((run / f"{name}.csv").read_text().splitlines())) for name in ("losses_log", "timing_logs")
    )
    assert [row["step"] for row in losses] == ["2", "4", "6", "8"] and losses[-1]["val_loss"]
    assert {"forward_s", "backward_s", "optimizer_s", "data_s", "total_s"} <= timings[-1].keys()
    assert list((run / "checkpoints").glob("best-*/model.safetensors"))
    assert "step 8/8" in (run / "logs" / "rank0.log").read_text()
    assert list((run / "tb").glob("events.*")) and (tmp_path / "runs" / "mlflow.db").exists()
    assert list((run / "traces").glob("*.pt.trace.json.gz"))
    told = command("-m", "vlm", "trace", str(run), "--top", "100")
    assert told.returncode == 0 and "longest events" in told.stdout
    assert len(told.stdout.partition("longest events")[2].splitlines()) > 100
