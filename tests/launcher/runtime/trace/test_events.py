"""Reading traces: whole ones, cut ones, and what is none."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.trace import events as reading
from launcher.runtime.trace.events import read_trace
from tests.launcher.runtime.trace.made import event, gpu_run, step, write


@pytest.fixture
def small_chunks(monkeypatch):
    """The file is read a few bytes at a time: every event is cut by an edge."""
    monkeypatch.setattr(reading, "_CHUNK", 37)


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_whole_trace_gives_all_events(tmp_path, name, small_chunks):
    made = [step(1, 0, 50), *(event(f"aten::op{i}", i, 1) for i in range(40))]
    trace = read_trace(write(tmp_path / name, made, traceName="x"))
    assert trace.damage == "" and [e.name for e in trace.events] == [e["name"] for e in made]
    assert (trace.events[3].start, trace.events[3].end, trace.events[3].thread) == (2, 3, ("host", 1))


def test_a_bare_list_of_events_is_a_trace_too(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([event("aten::mm", 0, 5)]))
    assert [e.name for e in read_trace(path).events] == ["aten::mm"]


def test_what_torch_itself_writes_is_read(tmp_path):
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(4, 4) @ torch.ones(4, 4)
    profile.export_chrome_trace(str(tmp_path / "t.json"))
    trace = read_trace(tmp_path / "t.json")
    assert trace.damage == "" and "aten::mm" in {e.name for e in trace.events}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_trace_cut_off_gives_what_stands_before_the_cut(tmp_path, name, share):
    path = write(tmp_path / name, [event(f"aten::op{i}", i, 1) for i in range(500)])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    trace = read_trace(path)
    assert 0 < len(trace.events) <= 500
    whole = len(trace.events) == 500  # of gzip only the checksum was cut off
    assert whole or trace.damage in ("it ends in the middle", "it is cut off or damaged")
    assert [e.name for e in trace.events] == [f"aten::op{i}" for i in range(len(trace.events))]


def test_gzip_that_is_damaged_gives_what_stands_before_it(tmp_path):
    made = [event(f"aten::op{i}", i * 1.37, i % 17) for i in range(40_000)]
    data = bytearray(write(tmp_path / "t.json.gz", made).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "t.json.gz").write_bytes(data)
    trace = read_trace(tmp_path / "t.json.gz")
    assert 0 < len(trace.events) < 40_000 and trace.damage


def test_garbage_between_events_ends_it_there(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LONGEST_EVENT", 4096)
    path = tmp_path / "t.json"
    path.write_text('{"traceEvents": [' + json.dumps(event("aten::mm", 0, 5)) + ", %%%" + "x" * 10_000 + "]}")
    trace = read_trace(path)
    assert len(trace.events) == 1 and trace.damage == "what follows is no JSON"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no trace"),
        (b"step,loss\n1,2\n", "is no trace"),
        (b'{"name": "a config"}', "is no trace"),
        (b"\x1f\x8b\x08\x00", "is no trace"),
        (b'{"traceEvents": []}', "holds no events; record one with profiler=steps"),
        (b"[]", "holds no events"),
        (b'{"traceEvents": [', "holds no events (it ends in the middle)"),
        (b'{"traceEvents": [{"ph": "M", "name": "process_name"}]}', "holds no events"),
    ],
)
def test_what_is_no_trace_is_said_in_one_line(tmp_path, data, said):
    path = tmp_path / "t.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_trace(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_and_a_missing_file_are_no_traces(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_trace(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_trace(tmp_path / "none")


def test_events_of_a_strange_shape_are_passed_over(tmp_path):
    good = event("aten::mm", 1, 2)
    bad = [
        7, None, [], {"ph": "X"}, good | {"ts": "1"}, good | {"dur": -1}, good | {"name": 3}, good | {"ts": 1e999},
        good | {"cat": "python_function"}, good | {"cat": ["cpu_op"]},
    ]  # fmt: skip
    odd = [good | {"args": "none"}, good | {"pid": {"a": 1}}, good | {"args": {"correlation": "x"}}]
    assert len(read_trace(write(tmp_path / "t.json", [*bad, good, *odd])).events) == 4


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3000))
def test_no_bytes_do_more_than_be_refused(tmp_path_factory, noise, at):
    path = tmp_path_factory.getbasetemp() / "noise.json"
    data = bytearray(json.dumps({"traceEvents": gpu_run(steps=1)}).encode())
    data[at : at + len(noise)] = noise
    for content in (bytes(data), gzip.compress(bytes(data))[: at or 1]):
        path.write_bytes(content)
        try:
            assert read_trace(path).events
        except UserError as error:
            assert str(path) in str(error)
