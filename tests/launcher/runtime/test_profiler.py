"""Windows of steps as trace files; and a training that does not end because it is looked at."""

from __future__ import annotations

import gzip
import json
import logging
import signal

import pytest
import torch
from torch.autograd import profiler as torchs

from launcher.runtime.profiler import StepProfiler
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import ProfilerSettings
from launcher.runtime.spans import span
from launcher.runtime.world import World
from tests.launcher.runtime.desk import Desk


def settings(**values):
    return ProfilerSettings(**({"kind": "steps", "wait": 1, "warmup": 1, "active": 2, "repeat": 1} | values))


def record(folder, steps=8, attempt=1, begin=0, world=None, **values):
    """A profiler that has seen ``steps`` steps, each of one matrix product, after step ``begin``."""
    profiler = StepProfiler(settings(**values), RunDir(folder), world or World(), attempt)
    profiler.begin(begin)
    for step in range(begin + 1, begin + steps + 1):
        with span("forward"):
            torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.at(step)
    profiler.close(60)
    assert not torchs._is_profiler_enabled
    return profiler


def content(path):
    with gzip.open(path, "rt") as file:
        return json.load(file)


def steps_of(path):
    names = (event["name"] for event in content(path)["traceEvents"])
    return sorted(int(name.removeprefix("ProfilerStep#")) for name in names if name.startswith("ProfilerStep#"))


def windows(folder):
    return [steps_of(path) for path in sorted(RunDir(folder).list_traces())]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [[3, 4]]),
        ({"wait": 0, "warmup": 0, "active": 1}, [[1]]),
        ({"wait": 0, "warmup": 0, "active": 3, "repeat": 2}, [[1, 2, 3], [4, 5, 6]]),
        ({"repeat": 2}, [[3, 4], [7, 8]]),
        ({"wait": 0, "warmup": 1, "active": 1, "repeat": 0}, [[2], [4], [6], [8]]),
        ({"wait": 7}, []),
        ({"kind": "off"}, []),
        ({"ranks": [1]}, []),
    ],
)
def test_windows_follow_the_schedule(tmp_path, values, expected):
    record(tmp_path, **values)
    assert windows(tmp_path) == expected
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_trace_holds_operators_and_the_parts_of_a_step(tmp_path):
    record(tmp_path, shapes=True, flops=True, memory=True, stacks=True)
    (path,) = RunDir(tmp_path).list_traces()
    assert path.name == "rank0.step000004.a0001.pt.trace.json.gz"
    events = content(path)["traceEvents"]
    assert sum(event["name"] == "phase::forward" for event in events) == 2
    products = [event for event in events if event["name"] == "aten::mm"]
    assert len(products) == 2 and products[0]["args"]["Input Dims"][:2] == [[4, 4], [4, 4]]


def test_each_rank_and_attempt_has_files_of_its_own(tmp_path):
    record(tmp_path, ranks=[0, 1])
    record(tmp_path, ranks=[0, 1], world=World(rank=1, size=2))
    record(tmp_path, attempt=2)
    record(tmp_path, attempt=2, begin=100)
    rundir = RunDir(tmp_path)
    assert [path.name.removesuffix(".pt.trace.json.gz") for path in rundir.list_traces()] == [
        "rank0.step000104.a0002", "rank0.step000004.a0002", "rank0.step000004.a0001", "rank1.step000004.a0001",
    ]  # fmt: skip
    assert [rundir.rank_of(path) for path in rundir.list_traces()] == [0, 0, 0, 1]


def test_spans_cost_nothing_while_nothing_is_recorded():
    assert span("forward") is span("backward")


def test_a_session_marks_steps_and_saves(tmp_path):
    desk = Desk(tmp_path, profiler=settings(wait=1, warmup=0), every_steps=1)
    for step in range(1, 5):
        desk.save(step)
    desk.session.profiler.close(60)
    (path,) = desk.rundir.list_traces()
    assert steps_of(path) == [2, 3]
    assert sum(event["name"] == "phase::checkpoint" for event in content(path)["traceEvents"]) == 2


def test_a_resumed_run_goes_on_with_a_window_of_its_own(tmp_path):
    desk = Desk(tmp_path, profiler=settings(wait=0, warmup=0), every_steps=2)
    for step in range(1, 5):
        desk.save(step)
    desk.session.profiler.close(60)
    again = Desk(tmp_path, attempt=2, profiler=settings(wait=0, warmup=0), every_steps=2)
    for step in range(4, 8):  # what the checkpoint owes is done first
        again.save(step)
    again.session.profiler.close(60)
    assert windows(tmp_path) == [[1, 2], [5, 6]]


def test_a_stop_in_a_window_keeps_the_steps_so_far_and_the_save(tmp_path):
    desk = Desk(tmp_path, profiler=settings(wait=0, warmup=0, active=50))
    for step in range(1, 4):
        if step == 3:
            desk.stop.signal = signal.SIGTERM
        desk.session.should_stop()
        desk.save(step)
    assert desk.steps() == [3] and not RunDir(tmp_path).list_traces()  # the save comes first
    desk.session.profiler.close(60)
    assert windows(tmp_path) == [[1, 2, 3]] and not torchs._is_profiler_enabled


def test_a_stop_in_the_warm_up_leaves_no_trace(tmp_path):
    profiler = StepProfiler(settings(wait=0, warmup=5), RunDir(tmp_path), World(), 1)
    profiler.begin(0)
    profiler.at(1, last=True)
    profiler.close()
    assert not RunDir(tmp_path).list_traces() and not torchs._is_profiler_enabled
    record(tmp_path)  # torch can record again
    assert windows(tmp_path) == [[3, 4]]


def test_a_run_that_breaks_down_in_a_window_lets_go_of_torchs_profiler(tmp_path):
    profiler = StepProfiler(settings(wait=0, warmup=0), RunDir(tmp_path), World(), 1)
    profiler.begin(0)
    assert torchs._is_profiler_enabled
    profiler.close()
    assert not torchs._is_profiler_enabled and not RunDir(tmp_path).list_traces()


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "traces").write_text("in the way")
    record(tmp_path, steps=20, repeat=0)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said.startswith("the profiler has stopped, the training goes on: FileExistsError")


def test_a_disk_that_is_full_is_said_once_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    def half(self, path):
        with open(path, "w") as file:  # noqa: PTH123
            file.write('{"traceEvents": [')

    monkeypatch.setattr(torch.profiler._KinetoProfile, "export_chrome_trace", half)
    record(tmp_path, steps=20, repeat=0)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "only 17 bytes of the trace could be written; is the disk full?" in said
    assert list((tmp_path / "traces").iterdir()) == []


def test_a_task_that_uses_torchs_profiler_itself_goes_on(tmp_path, caplog):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as theirs:
        profiler = StepProfiler(settings(wait=0, warmup=0), RunDir(tmp_path), World(), 1)
        profiler.begin(0)
        torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.at(1)
        profiler.close()
    assert "aten::mm" in {event.key for event in theirs.key_averages()}
    assert "the profiler has stopped, the training goes on" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_kernels_are_recorded_and_its_memory(tmp_path):
    profiler = StepProfiler(settings(wait=0, memory=True), RunDir(tmp_path), World(device="cuda:0"), 1)
    profiler.begin(0)
    for step in range(1, 5):
        torch.ones(64, 64, device="cuda:0") @ torch.ones(64, 64, device="cuda:0")
        profiler.at(step)
    profiler.close(60)
    (trace,) = RunDir(tmp_path).list_traces()
    assert any(event.get("cat") == "kernel" for event in content(trace)["traceEvents"])
    assert RunDir(tmp_path).memory_snapshot(0, 3, 1).stat().st_size > 0
