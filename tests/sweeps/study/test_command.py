"""``python -m sweeps study`` as it is typed: what it refuses, what it shows, and that the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.runtime.sweepdir import SweepDir
from slurm.processes import wait_until
from sweeps.study.folder import StudyDir
from tests.conftest import REPOSITORY, SMALL, type_here
from tests.sweeps.study.lab import trials

SEARCH = "search: {optim.lr: {log: [1e-4, 1e-1]}}\n"
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Typed]:
    """``typed(text, *words)``: ``python -m sweeps study mine.yaml WORDS`` where that file holds ``text``."""

    def run(text: str, *words: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "mine.yaml").write_text(text)
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        return type_here(tmp_path, env, "study", "mine.yaml", *words, door="sweeps.__main__")

    yield run


def in_file(space: str, more: str = "") -> str:
    return f"search: {{{space}}}\n{more}"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("fixed: {}\n", (), "mine.yaml: has no 'search'; name what to search"),
        ("vary: {grid: {optim.lr: [1]}}\n", (), "has no 'search'; python -m launcher.run -m sweep=mine"),
        (in_file("optim.lrr: {log: [1, 2]}"), (), "search: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (in_file("model: {choices: [tiny, small]}"), (), "search.model: is a config group"),
        (in_file("launch.name: {choices: [a]}"), (), "unknown key 'launch.name'"),
        (in_file("optim.lr: {linear: [-1.0, 1.0]}"), (), "search: optim.lr=-1.0: should be greater than 0"),
        (in_file("trainer.batch_size: {choices: [8, x]}"), (), "search: trainer.batch_size='x': should be a valid"),
        (in_file("model.n_embd: {choices: [32, 33]}"), (), "n_embd=33 is not divisible by n_head=4"),
        (in_file("optim.lr: {log: [0, 1]}"), (), "search.optim.lr.log=[0.0, 1.0]: both should be above 0"),
        (in_file("optim.lr: {log: [1, 0.1]}"), (), "the first should be below the second"),
        (in_file("optim.lr: {choices: []}"), (), "search.optim.lr.choices=[]: has no value"),
        (SEARCH + "study: {sampler: tpee}\n", (), "study.sampler='tpee': should be 'tpe', 'random' or 'grid'; did you"),
        (SEARCH + "study: {pruner: fast}\n", (), "study.pruner='fast': should be 'median' or 'none'"),
        (SEARCH + "study: {trials: 4}\n", (), "unknown key 'study.trials'; did you mean 'n_trials'?"),
        (SEARCH + "study: {timeout_min: 0}\n", (), "timeout_min=0.0 should be above 0 minutes"),
        (SEARCH + "study: {sampler: grid}\n", (), "study.sampler=grid: needs choices; search.optim.lr is a range"),
        (SEARCH + "metric: samples_per_s\nstudy: {pruner: median}\n", (), "metric=samples_per_s has no curve"),
        (SEARCH + "fixed: {optim.lr: 1}\n", (), "optim.lr: stands in search and in fixed; name it once"),
        (SEARCH, ("optim.lr=1",), "optim.lr=1: optim.lr is searched by"),
        (SEARCH, ("optim.weight_decay=${optim.lr}",), "search.optim.lr: optim.weight_decay=${optim.lr} refers to it"),
        (SEARCH, ("tiny",), "tiny: should be an override like key=value"),
        (SEARCH, ("hardware.nodes=2",), "hardware.nodes=2: a trial is one rank (allowed: 1)"),
        (SEARCH, ("hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"), "hardware.tasks_per_node=2"),
        (SEARCH, ("--workers", "0"), "--workers 0: should be at least 1"),
        (SEARCH, ("--trials", "0"), "--trials 0: should be at least 1"),
        (SEARCH, ("--timeout", "-1"), "--timeout -1: should be above 0 minutes"),
        (SEARCH, ("--workers", "2"), "--workers 2: one worker runs in this process; add hydra/launcher="),
        (SEARCH, ("optim.weight_dcay=1",), "optim.weight_dcay"),
        (SEARCH, ("--show",), "runs/mine: holds no study; begin it without --show"),
    ],
)
def test_what_does_not_fit_is_one_line_and_starts_nothing(typed: Typed, tmp_path: Path, text: str, words, said: str):
    done = typed(text, *words)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_all_that_does_not_fit_is_told_at_once(typed: Typed):
    done = typed(in_file("optim.lrr: {log: [1, 2]}, optim.lr: {linear: [-2.0, -1.0]}"))
    assert done.stderr.count("\n") == 1
    for word in ("optim.lrr", "optim.lr=-2.0", "optim.lr=-1.0"):
        assert word in done.stderr


def test_workers_that_this_machine_has_no_gpus_for_are_refused(typed: Typed, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus = ("hydra/launcher=submitit_local", "hardware.device=cuda", "hardware.gpus_per_node=1")
    ended = typed(SEARCH, *gpus)
    assert (ended.returncode, ended.stderr.strip()) == (
        1, "error: hardware.gpus_per_node=1: this machine shows 0 GPUs",
    )  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_an_option_that_does_not_exist_is_bad_usage(typed: Typed):
    done = typed(SEARCH, "--worker", "2", "--triels", "3")
    assert done.returncode == 2 and "--triels" in done.stderr


def test_without_optuna_it_says_how_to_get_it(tmp_path: Path):
    code = "import sys; sys.modules['optuna'] = None; import sweeps.__main__ as door; sys.exit(door.main())"
    words = [sys.executable, "-c", code, "study", "seemore_search"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == 'error: optuna is not installed: pip install "seemore-launcher[hpo]"\n'


@pytest.mark.parametrize("module", ["launcher.run", "sweeps.__main__", "launcher.runtime.job"])
def test_optuna_is_imported_only_where_it_is_used(module: str):
    code = f"import sys, {module}; print([m for m in ('optuna', 'sqlalchemy') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_shipped_search_fits(tmp_path: Path):
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = type_here(tmp_path, env, "study", "seemore_search", "launch.dry_run=true", door="sweeps.__main__")
    assert done.returncode == 0 and "would search 3 keys in 16 trials" in done.stdout, done.stderr


STUDY = f"""
metric: val/loss
fixed: {{{", ".join(word.replace("=", ": ", 1) for word in SMALL if "batch_size" not in word)}}}
search:
  optim.lr: {{log: [1e-4, 1e-1]}}
  trainer.batch_size: {{choices: [4, 8]}}
study: {{n_trials: 3, sampler: random}}
"""


@pytest.fixture
def study(tmp_path: Path, command: Typed) -> Typed:
    """The same with ``STUDY``, in a process of its own."""
    (tmp_path / "mine.yaml").write_text(STUDY)
    return lambda *words: command("-m", "sweeps", "study", "mine.yaml", *words)


def folder_of(root: Path) -> StudyDir:
    return StudyDir(SweepDir(root / "runs" / "mine"))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_the_same_command_goes_on_and_more_trials_extend_it(study: Typed, tmp_path: Path, storage: str):
    first = study("--storage", storage)
    assert first.returncode == 0, first.stderr
    assert "3 of 3 trials: 3 COMPLETE" in first.stdout and "best: trial" in first.stdout
    folder = folder_of(tmp_path)
    file = str(folder.journal) if storage == "journal" else f"sqlite:///{folder.database}"
    assert f"optuna-dashboard {file}" in first.stdout
    before = [(trial.params, trial.value) for trial in trials(folder)]
    again = study("--storage", storage)
    assert again.returncode == 0 and again.stdout == first.stdout
    more = study("hydra/launcher=submitit_local", "--workers", "2", "--trials", "6", "--storage", storage)
    assert more.returncode == 0 and "6 of 6 trials: 6 COMPLETE" in more.stdout, more.stderr
    assert [(trial.params, trial.value) for trial in trials(folder)][:3] == before
    best = min(trials(folder), key=lambda trial: trial.value)
    assert f"best: trial {best.number}, val/loss = {best.value:.6g}" in more.stdout
    assert " ".join(f"{key}={value}" for key, value in best.params.items()) in more.stdout
    assert all(
        word.startswith(("optim.lr=", "trainer.batch_size=")) for words in members(folder) for word in words[-2:]
    )
    shown = study("--show", "--storage", storage)
    assert shown.stdout == more.stdout


def members(folder: StudyDir) -> list[list[str]]:
    return list(folder.sweep.read_members().values())


@pytest.mark.slow
def test_another_study_is_refused_its_folder_by_what_differs(study: Typed, tmp_path: Path):
    assert study("--trials", "1").returncode == 0
    for change, said in (
        (("search:", "direction: maximize\nsearch:"), "direction minimize -> maximize"),
        (("metric: val/loss", "metric: train_loss"), "metric val/loss -> train_loss"),
        (("1e-1", "1e-2"), "search.optim.lr {'log': [0.0001, 0.1]} -> {'log': [0.0001, 0.01]}"),
        (("choices: [4, 8]", "choices: [4]"), "search.trainer.batch_size"),
        (("trainer.max_steps: 6", "trainer.max_steps: 5"), "trainer.max_steps 6 -> 5"),
    ):
        (tmp_path / "mine.yaml").write_text(STUDY.replace(*change))
        done = study()
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert said in done.stderr and "choose another launch.name=" in done.stderr
    (tmp_path / "mine.yaml").write_text(STUDY.replace("sampler: random", "sampler: tpe"))
    assert study("--trials", "2").returncode == 0, "another sampler goes on with the same study"


@pytest.mark.slow
def test_a_metric_that_no_trial_has_is_an_error(study: Typed, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(STUDY.replace("metric: val/loss", "metric: val/los"))
    done = study("--trials", "2")
    assert done.returncode == 1 and "all 2 trials failed: metric=val/los: " in done.stderr.splitlines()[-1]
    assert "did you mean 'val/loss'?" in done.stderr


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(study: Typed, tmp_path: Path):
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sweeps", "study", "mine.yaml", "hydra/launcher=submitit_local", "--workers", "2"]
    words += ["--trials", "50", "trainer.max_steps=40", "trainer.val_every=1"]
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert wait_until(lambda: list(tmp_path.glob("runs/mine/*/metrics.csv")), 60)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and "the same command goes on" in said, said
    folder = folder_of(tmp_path)
    left = [trial.number for trial in trials(folder) if trial.state.name == "RUNNING"]
    assert left and [int(entry) for entry in folder.queue.list_waiting()] == left
    more = study("--trials", str(len(trials(folder))), "trainer.max_steps=40", "trainer.val_every=1")
    assert more.returncode == 0 and {trial.state.name for trial in trials(folder)} == {"COMPLETE"}, more.stderr


def test_the_doors_are_where_they_are_said_to_be():
    assert (
        (REPOSITORY / "sweeps" / "seemore_search.yaml")
        .read_text()
        .startswith("# python -m sweeps study seemore_search\n")
    )
