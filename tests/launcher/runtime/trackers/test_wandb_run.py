"""W&B by its own library, offline; and a server that cannot be reached."""

from __future__ import annotations

import gc
import json
import os
import signal
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launcher.__main__ import main
from launcher.manage.sync import unsent
from launcher.runtime.errors import ExitCode
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import start_trackers
from launcher.runtime.trackers.wandb_run import WandbRun
from tests.launcher.runtime.toy_job import STEPS, toy_job
from tests.launcher.runtime.trackers.stores import SUMMARY, about, free_port, write_ledger

# Of its own process, which W&B never asks after where it has ended.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

OFFLINE = TrackerSettings(wandb=True, wandb_mode="offline", wandb_entity="lab")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A user who has logged in nowhere."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "NETRC", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    gc.collect()  # what is said of what a test has left is said here


def written(rundir):
    """What stands in each offline folder, oldest first: W&B's records."""
    from wandb.proto import wandb_internal_pb2

    def record(data):
        found = wandb_internal_pb2.Record()
        found.ParseFromString(data)
        return found

    files = [file for folder in sorted(rundir.wandb.glob("offline-run-*")) for file in folder.glob("*.wandb")]
    return [[record(data) for data in log_entries(file.read_bytes())] for file in files]


def log_entries(data):
    """Entries of a log in LevelDB's format (its log_format.md) behind W&B's header of seven bytes."""
    block, at, parts = 32768, 7, []
    while at + 7 <= len(data):
        left = block - at % block
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def history(records):
    """Steps and what was logged at each."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            rows.append((record.history.step.num or row["_step"], row))
    return rows


def run_record(records):
    return next(record.run for record in records if record.WhichOneof("record_type") == "run")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "demo" / "0123456789ab"


def test_a_run_is_written_offline_under_its_own_id(path):
    told = about(path, slurm_job_id="12_3")
    run = WandbRun(told, OFFLINE)
    run.log({"train/loss": 2.0, "note": "hi", "samples/captions": np.zeros((4, 6, 3), np.uint8)}, 1)
    run.log({"train/loss": float("nan"), "a": float("inf")}, 2)
    run.finish(SUMMARY)
    ((*records,),) = written(told.rundir)
    record = run_record(records)
    assert (record.run_id, record.project, record.entity, record.run_group) == ("0123456789ab", "vlm", "lab", "demo")
    rows = history(records)
    assert [step for step, _ in rows] == [1, 2] and rows[0][1]["train/loss"] == 2.0 and rows[0][1]["note"] == "hi"
    assert rows[0][1]["samples/captions/_type"] == "image-file"
    (ended,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0 and unsent(told.rundir)


def test_a_run_that_goes_on_begins_with_its_past(path):
    first = WandbRun(about(path), OFFLINE)
    first.log({"train/loss": 1.0}, 1)
    first.finish({})
    told = about(path, 3)
    write_ledger(told.rundir, [1, 2, 3])
    second = WandbRun(told, OFFLINE)
    second.log({"train/loss": 4.0}, 4)
    second.finish(SUMMARY)
    *_, records = written(told.rundir)
    assert run_record(records).run_id == "0123456789ab"
    assert [(step, row["train/loss"]) for step, row in history(records)] == [
        (step, float(step)) for step in (1, 2, 3, 4)
    ]
    (newest,) = unsent(told.rundir)
    assert newest == sorted(told.rundir.wandb.glob("offline-run-*"))[-1]


def test_where_its_process_was_ended_the_run_is_written_anew(path):
    """Slurm's SIGTERM goes to every process of a job."""
    told = about(path)
    run = WandbRun(told, OFFLINE)
    for step in (1, 2, 3):
        run.log({"train/loss": float(step)}, step)
    write_ledger(told.rundir, [1, 2, 3])
    for process in _children_called("wandb-core"):
        descriptor = os.pidfd_open(process)
        os.kill(process, signal.SIGTERM)
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOWAIT)
        os.close(descriptor)
    run.finish(SUMMARY)
    *_, records = written(told.rundir)
    assert [step for step, _ in history(records)] == [1, 2, 3]
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]


def _children_called(name):
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    threads = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    children = {int(pid) for found in (own, *threads) for pid in found}
    found = [pid for pid in children if name in Path(f"/proc/{pid}/cmdline").read_text()]
    assert found
    return found


def test_what_was_typed_is_not_recorded(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launcher.run", "task.api_key=hunter2"])
    told = about(path)
    run = WandbRun(told, OFFLINE)
    run.log({"train/loss": 1.0}, 1)
    run.finish(SUMMARY)
    assert not [file for file in path.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]


def test_an_earlier_run_of_this_process_that_has_not_ended_keeps_its_numbers(tmp_path):
    runs = [WandbRun(about(tmp_path / "runs" / "demo" / (name * 12)), OFFLINE) for name in "ab"]
    for number, run in enumerate(runs):
        run.log({"train/loss": float(number)}, 1)
    for run in runs:
        run.finish(SUMMARY)
    for number, name in enumerate("ab"):
        ((*records,),) = written(about(tmp_path / "runs" / "demo" / (name * 12)).rundir)
        assert [row["train/loss"] for _, row in history(records)] == [float(number)]


@pytest.mark.parametrize("key", [None, "k" * 40])
def test_a_server_that_cannot_be_reached_is_said_and_the_run_written_offline(path, caplog, monkeypatch, key):
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setattr("launcher.runtime.trackers.wandb_run._REACHED_WITHIN_S", 1.0)
    told = about(path)
    trackers = start_trackers(TrackerSettings(wandb=True), told)
    for step in (1, 2, 3):
        trackers[0].log({"train/loss": float(step)}, step)
    trackers[0].finish(SUMMARY)
    assert trackers[0].wait()
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("launcher")]
    assert said.startswith("wandb: no server (") and "; it is written offline, send it with: wandb sync " in said
    *_, records = written(told.rundir)
    assert [step for step, _ in history(records)] == [1, 2, 3]
    if key:
        holding = [file for file in path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]
        assert holding == [] and key not in said


def test_a_whole_run_and_how_it_is_sent(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = toy_job(tmp_path)
    tracker = {"csv": True, "wandb": True, "wandb_mode": "offline", "wait_s": 120.0}
    plan = replace(plan, execution=plan.execution | {"tracker": tracker})
    assert run(plan).code == ExitCode.DONE
    ((*records,),) = written(plan.rundir)
    assert [step for step, _ in history(records)] == list(range(1, STEPS + 1))
    assert main(["sync", "runs"]) == ExitCode.DONE
    (folder,) = plan.rundir.wandb.glob("offline-run-*")
    assert (
        capsys.readouterr().out
        == f"{plan.rundir.path.relative_to(tmp_path)}: wandb: wandb sync {folder.relative_to(tmp_path)}\n"
    )
    (folder / "run.wandb.synced").touch()
    assert main(["sync", "runs"]) == ExitCode.DONE
    assert "wandb sync" not in capsys.readouterr().out
