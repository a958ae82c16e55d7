"""``python -m launcher.run`` as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import SMALL

RUN = ("-m", "launcher.run", *SMALL)
SWEEP = ("-m", "launcher.run", "-m", *SMALL)


def only_run(tmp_path, sweep="tiny-shapes"):
    (run,) = (tmp_path / "runs" / sweep).iterdir()
    return run


def test_one_command_leaves_a_whole_run_directory(command, tmp_path):
    done = command(*RUN)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert left >= {
        "config.yaml", "plan.json", "attempts.jsonl", "status.json", "summary.json", "metrics.csv", "losses_log.csv",
        "timing_logs.csv", "loss_curve.png", "timing_curve.png", "checkpoints/LATEST", "logs/rank0.log",
        "checkpoints/step-000000000006.a0001/MANIFEST.json",
    }  # fmt: skip
    assert any(name.startswith("tb/events") for name in left)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "COMPLETED" and summary["step"] == 6 and summary["val_loss"] > 0
    assert set(summary) >= {"train_loss", "best_val_loss", "samples_per_s", "weights_sha256", "wall_s"}
    assert str(run) in done.stdout and f"tensorboard --logdir {run.parent}" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "cache"}  # no outputs/, no multirun/


def test_a_completed_run_is_not_run_again(command, tmp_path):
    command(*RUN)
    run = only_run(tmp_path)
    before = (run / "summary.json").stat().st_mtime_ns
    again = command(*RUN)
    assert again.returncode == 0 and f"COMPLETED already: {run}" in again.stdout
    assert (run / "summary.json").stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on_to_the_same_weights(command, tmp_path):
    long = (*RUN, "trainer.max_steps=200", "trainer.val_every=null", "trainer.log_every=1", "trainer.log_samples=true")
    whole = command(*long, "launch.root=whole")
    assert whole.returncode == 0, whole.stderr
    (reference,) = (tmp_path / "whole" / "tiny-shapes").iterdir()

    metrics = tmp_path / "runs" / "tiny-shapes" / reference.name / "metrics.csv"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(metrics.parent), *long[2:]],
        cwd=tmp_path,
        env=_env(tmp_path),
        stderr=subprocess.PIPE,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors.decode()
    status = json.loads(metrics.with_name("status.json").read_text())
    assert status["state"] == "PREEMPTED" and 0 < status["step"] < 200

    again = command(*long)
    assert again.returncode == 0, again.stderr
    sums = [json.loads((run / "summary.json").read_text())["weights_sha256"] for run in (reference, metrics.parent)]
    assert sums[0] == sums[1]
    assert metrics.with_name("samples.csv").read_text() == (reference / "samples.csv").read_text()
    steps = [line.split(",")[0] for line in metrics.read_text().splitlines()[1:] if ",train,loss," in line]
    assert steps == [str(step) for step in range(1, 201)]


# Sends SIGTERM to itself once a few steps are on disk: an event, not a delay.
INTERRUPTED = f"""
import os, signal, sys, threading, time
from pathlib import Path
below = Path(sys.argv.pop(1))
def watch():
    while not any(f.read_text().count(",train,loss,") >= 5 for f in below.rglob("metrics.csv")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.{signal.SIGTERM.name})
threading.Thread(target=watch, daemon=True).start()
from launcher.run import main
sys.exit(main())
"""


def _env(tmp_path):
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def test_a_sweep_trains_each_member_and_keeps_weights_only(command, tmp_path):
    done = command(*SWEEP, "optim.lr=1e-3,2e-3", "trainer.seed=0,1")
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    runs = list(sweep.iterdir())
    assert sweep.name.startswith("tiny-shapes-") and len(runs) == 4
    for run in runs:
        kinds = {p.name.partition("-")[0] for p in (run / "checkpoints").iterdir()}
        assert kinds == {"best", "final"}
    lrs = sorted(json.loads((run / "plan.json").read_text())["science"]["optim"]["lr"] for run in runs)
    assert lrs == [1e-3, 1e-3, 2e-3, 2e-3]
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "cache"}


def test_extending_a_grid_extends_the_sweep(command, tmp_path):
    command(*SWEEP, "optim.lr=1e-3")
    command(*SWEEP, "optim.lr=1e-3,2e-3", "trainer.max_steps=6")
    sweeps = {p.name: len(list(p.iterdir())) for p in (tmp_path / "runs").iterdir()}
    assert sorted(sweeps.values()) == [1, 2]  # one value is no sweep; of the two the finished one had another home
    done = command(*SWEEP, "optim.lr=1e-3,2e-3,3e-3")
    assert done.stdout.count("COMPLETED already") == 2
    assert sorted(len(list(p.iterdir())) for p in (tmp_path / "runs").iterdir()) == [1, 3]


def test_a_member_that_does_not_fit_stops_the_sweep_before_it_starts(command, tmp_path):
    done = command(*SWEEP, "optim.lr=1e-3,fast", "model.n_head=2,3")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "optim.lr='fast'" in done.stderr and "n_head=3" in done.stderr and "3 of 4 members" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_member_that_fails_while_it_runs_leaves_the_others_alone(command, tmp_path):
    done = command(*SWEEP, "trainer.batch_size=4,38", "data.val_fraction=0.5", "data.split_by=image")
    assert done.returncode == 1
    assert "trainer.batch_size=38 is larger than the data" in done.stderr
    states = sorted(json.loads(p.read_text())["state"] for p in tmp_path.glob("runs/*/*/status.json"))
    assert states == ["COMPLETED", "FAILED"]


def test_trackers_can_be_chosen_together(command, tmp_path):
    done = command(*RUN, "tracker=[tensorboard,csv]")
    assert done.returncode == 0, done.stderr
    assert (only_run(tmp_path) / "tb").exists() and (only_run(tmp_path) / "metrics.csv").exists()


def test_without_trackers_the_summary_promises_no_curves(command, tmp_path):
    done = command(*RUN, "tracker=none")
    assert done.returncode == 0 and "curve" not in done.stdout and "tensorboard" not in done.stdout
    assert not (only_run(tmp_path) / "metrics.csv").exists()


def test_a_stopped_sweep_says_what_it_left_out(tmp_path):
    words = [*SMALL, "trainer.seed=0,1,2", "trainer.max_steps=200", "launch.name=stopped"]
    metrics = tmp_path / "runs" / "stopped"
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(metrics), "-m", *words],
        cwd=tmp_path, env=_env(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 75, process.stderr
    assert "2 members did not run" in process.stderr


def test_an_experiments_sweeper_params_are_swept(command, tmp_path):
    done = command(*SWEEP, "hydra.sweeper.params={optim.lr: '1e-3,2e-3'}", "trainer.seed=1,2")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/*/summary.json"))) == 4


def test_two_ranks_on_this_machine_train_one_run(command, tmp_path):
    done = command(*RUN, "hardware=local_2", "trainer.max_steps=2", "precision=fp32", "tracker=csv")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs COMPLETED" in done.stdout
    (summary,) = (tmp_path / "runs" / "tiny-shapes").glob("*/summary.json")
    run = summary.parent
    assert json.loads(summary.read_text())["step"] == 2 and len(list((run.parent / "code").iterdir())) == 1
    assert sorted(p.name for p in (run / "logs").iterdir()) == ["rank0.log", "rank1.log"]
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "cache"}


@pytest.mark.slow
def test_ctrl_c_stops_a_queue_and_the_same_command_goes_on(command, tmp_path):
    words = [*SWEEP, "hydra/launcher=submitit_local", "trainer.seed=0,1", "launch.parallel=1", "launch.name=queue",
             "trainer.max_steps=200", "trainer.val_every=null"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, env=_env(tmp_path), stderr=subprocess.PIPE, text=True, process_group=0
    )
    metrics = tmp_path.glob
    while not any(f.read_text().count(",train,loss,") >= 5 for f in metrics("runs/queue/*/metrics.csv")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "1 runs stopped, 1 not begun; the same command goes on" in said.splitlines()[-1]
    states = [json.loads(f.read_text()) for f in metrics("runs/queue/*/status.json")]
    assert [state["state"] for state in states] == ["PREEMPTED"] and 0 < states[0]["step"] < 200
    again = command(*words)
    assert again.returncode == 0, again.stderr
    for file in metrics("runs/queue/*/metrics.csv"):
        steps = [line.split(",")[0] for line in file.read_text().splitlines()[1:] if ",train,loss," in line]
        assert steps == [str(step) for step in range(1, 201)], "none is missing, none was done twice"


def test_help_says_what_it_does_before_the_config(command):
    done = command("-m", "launcher.run", "--help")
    assert done.returncode == 0
    commands, groups, config = (done.stdout.index(part) for part in ("== Commands ==", "model: ", "trainer:"))
    assert commands < groups < config
    assert "python -m vlm generate" in done.stdout


@pytest.mark.parametrize("what", ["job", "hydra"])
def test_the_config_can_be_printed_without_a_run(command, tmp_path, what):
    done = command("-m", "launcher.run", "--cfg", what)
    assert done.returncode == 0 and not (tmp_path / "runs").exists()
    assert ("optim:" in done.stdout) or ("hydra:" in done.stdout)


def test_an_unknown_flag_is_bad_usage(command):
    assert command("-m", "launcher.run", "--nonsense").returncode == 2


def test_a_diverging_run_ends_with_code_3_and_is_failed(command, tmp_path):
    done = command(*RUN, "precision=fp32", "optim.lr=1e30", "trainer.grad_clip=0", "trainer.max_steps=50")
    assert done.returncode == 3 and "the loss is" in done.stderr.splitlines()[-1]
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert status["state"] == "FAILED" and "loss" in status["reason"]


def test_a_sweep_without_a_member_says_so(command, tmp_path):
    done = command(*SWEEP, "trainer.seed=range(0,0)")
    assert done.returncode == 1 and done.stderr == "error: the sweep has no member: one of trainer.seed has no value\n"
    assert not (tmp_path / "runs").exists()
