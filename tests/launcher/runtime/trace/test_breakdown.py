"""The figures of traces made by hand, and the laws that they keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.trace.breakdown import break_down
from launcher.runtime.trace.events import read_trace
from launcher.runtime.trace.timeline import lay_out, self_times
from tests.launcher.runtime.trace.made import event, gpu_run, launched, phase, step, write


@pytest.fixture
def figures(tmp_path):
    """``figures(events)``: the breakdown of a trace that holds them."""
    return lambda events: break_down(lay_out(read_trace(write(tmp_path / "t.json", events))))


def shares(found):
    return {part.name: round(part.share, 3) for part in found.parts if part.share}


def test_each_moment_of_a_step_belongs_to_one_part(figures):
    found = figures(
        [
            step(7, 0, 1000), phase("data", 0, 100), phase("forward", 100, 300), phase("backward", 400, 400),
            phase("communication", 500, 100), phase("mine", 800, 50), event("aten::isfinite", 900, 50),
        ]
    )  # fmt: skip
    assert shares(found) == {
        "data": 0.1, "forward": 0.3, "backward": 0.3, "communication": 0.1, "mine": 0.05, "other": 0.05, "idle": 0.1,
    }  # fmt: skip
    assert (found.steps, found.step_ms, found.exposed) == ([7], 1.0, 0.1)


def test_a_loop_that_names_nothing_is_known_by_what_torch_names(figures):
    found = figures(
        [
            step(0, 0, 1000), event("enumerate(DataLoader)#_Iter.__next__", 0, 200, "user_annotation"),
            event("autograd::engine::evaluate_function: MmBackward0", 300, 300),
            event("Optimizer.step#AdamW.step", 700, 100, "user_annotation"),
        ]
    )  # fmt: skip
    assert not found.named
    assert shares(found) == {"data": 0.2, "backward": 0.3, "optimizer": 0.1, "idle": 0.4}


def test_a_trace_without_steps_is_taken_as_one(figures):
    found = figures([event("aten::mm", 0, 600), event("aten::mm", 800, 200)])
    assert (found.steps, found.n_steps, found.step_ms) == ([], 1, 1.0)
    assert shares(found) == {"other": 0.8, "idle": 0.2}


def test_what_lies_outside_of_the_steps_does_not_count(figures):
    found = figures(
        [event("aten::mm", -500, 100), step(1, 0, 100), event("aten::mm", 20, 10), event("aten::mm", 300, 9)]
    )
    assert [(row.name, row.calls, row.self_ms) for row in found.operators] == [("aten::mm", 1, 0.01)]


def test_operators_count_their_own_time_only(figures):
    found = figures(
        [step(1, 0, 1000), event("aten::linear", 0, 500), event("aten::t", 10, 100), event("aten::addmm", 200, 250)]
    )
    assert {row.name: row.self_ms for row in found.operators} == pytest.approx(
        {"aten::linear": 0.15, "aten::t": 0.1, "aten::addmm": 0.25}
    )
    assert [(event.name, us) for event, us in found.longest] == [
        ("aten::addmm", 250), ("aten::linear", 150), ("aten::t", 100),
    ]  # fmt: skip


@st.composite
def _nested(draw, start=0, length=1000, depth=3):
    """Operators that call each other, on one thread."""
    events, at = [], start
    for _ in range(draw(st.integers(0, 3))):
        if depth == 0 or at + 2 >= start + length:
            break
        begin = draw(st.integers(at, start + length - 2))
        end = draw(st.integers(begin + 1, start + length))
        events.append(event(f"op{len(events)}", begin, end - begin))
        events += draw(_nested(begin, end - begin, depth - 1))
        at = end
    return events


@given(_nested())
def test_self_times_add_up_to_the_time_in_which_anything_ran(tmp_path_factory, made):
    path = write(tmp_path_factory.getbasetemp() / "nested.json", [step(1, 0, 1000), *made])
    timeline = lay_out(read_trace(path))
    busy = {moment for e in made for moment in range(e["ts"], e["ts"] + e["dur"])}
    assert sum(us for _, us in self_times(timeline.operators)) == pytest.approx(len(busy))


def test_a_gpu_is_busy_while_any_stream_is(figures):
    found = figures(
        [
            step(1, 0, 1000), phase("forward", 0, 400), phase("backward", 400, 600),
            *launched("gemm", 10, 100, 300, 1), *launched("gemm", 410, 450, 200, 2),
            *launched("copy", 415, 500, 250, 3, stream=8),
        ]
    )  # fmt: skip
    assert found.gpu is not None and found.gpu.busy == pytest.approx(0.6)
    assert (found.part("forward").gpu_ms, found.part("backward").gpu_ms) == pytest.approx((0.3, 0.3))
    assert {row.name: row.device for row in found.operators} == {"gemm": "gpu", "copy": "gpu"}


def test_communication_that_computing_hides_is_not_exposed(figures):
    found = figures(gpu_run(kernels=10, kernel=100, gap=0, comm=(400, 300)))
    assert found.communication == pytest.approx(400 / 1100)
    assert found.exposed == pytest.approx(100 / 1100)


def test_waits_for_a_result_are_counted(figures):
    found = figures(gpu_run(kernels=10, sync=True))
    assert found.syncs == 10
    assert found.gpu is not None and found.gpu.after_sync == pytest.approx(0.1, abs=0.01)


def test_copies_to_memory_that_is_not_pinned_are_waits(figures):
    made = [
        step(1, 0, 1000), phase("forward", 0, 1000),
        event("cudaMemcpyAsync", 100, 400, "cuda_runtime", correlation=5),
        event("Memcpy DtoH (Device -> Pageable)", 480, 10, "gpu_memcpy", (0, 7), correlation=5),
        event("Memcpy DtoH (Device -> Pinned)", 600, 10, "gpu_memcpy", (0, 7), correlation=6),
    ]  # fmt: skip
    assert figures(made).syncs == 1


def test_a_backward_pass_that_waits_for_gloo_is_communication(figures):
    found = figures(
        [
            step(1, 0, 1000), phase("backward", 0, 1000), event("MmBackward0", 0, 300),
            event("gloo:all_reduce", 100, 700, "user_annotation", ("host", 2)),
        ]
    )  # fmt: skip
    assert shares(found) == {"backward": 0.5, "communication": 0.5}
