"""``profiler=steps`` and ``python -m vlm trace``: what real runs with a bottleneck put in on purpose are told."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import subprocess
import sys

import pytest

from launcher.plan import make_plan, make_queued_plan
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.job import run_job
from launcher.runtime.signals import StopFlag
from launcher.runtime.trace import telling
from launcher.runtime.trace.report import explain
from tests.vlm.conftest import run_ranks
from vlm.__main__ import main

RECORDED = ("profiler=steps", "profiler.wait=2", "profiler.active=5", "trainer.max_steps=10")
QUIET = (*RECORDED, "trainer.val_every=null", "trainer.log_every=10")


@pytest.fixture
def traced(plan):
    """``traced("slow_data", overrides…)``: the plan of a run that was recorded with that bottleneck in it."""

    def run(planted, *overrides, ranks=1):
        made = plan(*overrides)
        if planted:
            made = dataclasses.replace(made, target=f"tests.vlm.planted:{planted}")
        if ranks > 1:  # as hardware=local_2 would plan it; make_plan knows one rank only
            recording = made.execution["profiler"] | {"ranks": list(range(ranks))}
            made = dataclasses.replace(made, execution=made.execution | {"profiler": recording})
            run_ranks(made, ranks)
        else:
            run_job(made, {}, StopFlag(), visible=False)
        return made

    return run


def told(capsys, *words):
    capsys.readouterr()
    assert main(["trace", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


BIG = ("model.n_embd=64", "model.image_embed_dim=64", "model.n_layer=2", "trainer.batch_size=16")


@pytest.mark.parametrize(
    ("planted", "overrides", "kind", "said"),
    [
        ("slow_data", QUIET, "data", "data loading holds the step back"),
        ("", (*QUIET, "trainer.batch_size=1"), "overhead", "try trainer.batch_size=4 (now 1)"),
        ("sync_each_layer", (*QUIET, *BIG), "sync", "take .item()"),
        ("", (*RECORDED, "trainer.val_every=1", "checkpoint.best=false"), "validation", "(now 1)"),
        ("slow_disk", (*QUIET, "checkpoint.every_steps=1"), "checkpoint", "try checkpoint.every_steps="),
    ],
    ids=["slow data", "tiny batches", "sync each layer", "validation too often", "checkpoint stall"],
)
def test_the_bottleneck_that_was_put_in_is_named_first(traced, capsys, planted, overrides, kind, said):
    found = told(capsys, traced(planted, *overrides).rundir.path)
    first = found["verdicts"][0]
    assert first["kind"] == kind, found["verdicts"]
    assert said in first["words"] and found["steps"] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("planted", ["slow_ranks", "slow_gloo"])
def test_ranks_that_wait_for_each_other_are_named_first(traced, capsys, planted):
    path = traced(planted, *QUIET, ranks=2).rundir.path
    first = told(capsys, path)["verdicts"][0]
    assert (first["kind"], "try trainer.batch_size=8 (now 4)" in first["words"]) == ("communication", True)
    assert told(capsys, path, "--rank", "1")["trace"].endswith("rank1.step000009.a0001.pt.trace.json.gz")


def test_of_a_run_that_computes_nothing_stands_out(traced, capsys):
    size = ("model.img_size=48", "data.px=48", "trainer.batch_size=32", "model.n_layer=4", "model.n_blocks=3")
    run = traced("", *QUIET, *BIG, *size)
    first = told(capsys, run.rundir.path)["verdicts"][0]
    assert first["kind"] == "none" and first["words"].endswith("% of the step is the model's own work")


def test_a_run_tells_its_own_trace_in_a_file_and_in_tensorboard(traced):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rundir = traced("slow_data", *QUIET, "tracker=tensorboard").rundir
    text = rundir.trace_report.read_text()
    assert "1. data loading holds the step back" in text and "try data.workers=4 (now 0)" in text
    events = EventAccumulator(str(rundir.tensorboard))
    events.Reload()
    (shown,) = events.Tensors("traces/report/text_summary")
    assert text in shown.tensor_proto.string_val[0].decode()


def test_a_report_that_cannot_be_written_does_not_end_the_run(traced, monkeypatch, caplog):
    def broken(path):
        raise ArithmeticError("of ours")

    monkeypatch.setattr(telling, "explain", broken)
    rundir = traced("", *QUIET).rundir
    assert rundir.state() == "COMPLETED" and not rundir.trace_report.exists()
    assert "the trace cannot be explained: ArithmeticError: of ours" in caplog.text


def test_the_profiler_leaves_what_is_learned_alone(traced):
    plain, seen = traced("", "trainer.max_steps=10"), traced("", "launch.name=seen", *RECORDED, "profiler.memory=true")
    assert plain.run_id == seen.run_id
    sums = [run.rundir.read(run.rundir.summary)["weights_sha256"] for run in (plain, seen)]
    assert sums[0] == sums[1] and not plain.rundir.traces.exists()


def test_a_preemption_in_a_window_saves_and_the_run_goes_on_to_the_same_weights(plan, own_signals):
    whole = plan("trainer.max_steps=10", "launch.name=whole")
    run_job(whole, {}, StopFlag(), visible=False)
    long = ("profiler=steps", "profiler.wait=2", "profiler.warmup=1", "profiler.active=1000", "trainer.log_every=1")
    made = dataclasses.replace(plan("trainer.max_steps=10", *long), target="tests.vlm.planted:stopped_once")
    stop = StopFlag()
    stop.install()
    assert run_job(made, {}, stop, visible=False).code == ExitCode.STOPPED_SAVED
    assert explain(made.rundir.list_traces()[0]).found.steps == [4, 5, 6, 7]
    assert not list(made.rundir.traces.glob(".*"))
    ended = run_job(made, {}, StopFlag(), visible=False)
    assert ended.summary["weights_sha256"] == whole.rundir.read(whole.rundir.summary)["weights_sha256"]
    assert explain(made.rundir.list_traces()[0]).found.steps == [4, 5, 6, 7]  # three steps are too few for a window


@pytest.fixture
def recorded(traced):
    """The run directory of a run with one trace."""
    return traced("", *QUIET).rundir


def test_text_and_csv_hold_the_same_figures(recorded, capsys, tmp_path):
    assert main(["trace", str(recorded.path), "--top", "3", "--csv", str(tmp_path / "t.csv")]) == 0
    text = capsys.readouterr().out
    assert "part of a step" in text and "longest events" in text
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"verdict", "part", "operator", "event"}
    assert sum(float(row["share"]) for row in rows if row["kind"] == "part") == pytest.approx(1)
    assert sum(row["kind"] == "event" for row in rows) == 3
    forward = next(row for row in rows if row["name"] == "forward")
    assert f"forward{float(forward['ms']):>19.2f}" in text


def test_a_sweeps_folder_and_the_file_itself_mean_the_same(recorded, capsys):
    (trace,) = recorded.list_traces()
    assert told(capsys, trace) == told(capsys, recorded.path) == told(capsys, recorded.path.parent)


def test_a_trace_that_is_cut_off_is_told_as_far_as_it_goes(recorded, capsys):
    (trace,) = recorded.list_traces()
    trace.write_bytes(trace.read_bytes()[: trace.stat().st_size // 2])
    assert main(["trace", str(recorded.path)]) == 0
    assert "The trace is not whole (it is cut off or damaged)" in capsys.readouterr().out


def error_of(capsys, *words):
    assert main(["trace", *map(str, words)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_input_is_one_line(recorded, capsys, tmp_path):
    (trace,) = recorded.list_traces()
    assert "rank 3 has no trace; ranks that have: 0" in error_of(capsys, recorded.path, "--rank", 3)
    assert "--csv" in error_of(capsys, recorded.path, "--csv", tmp_path / "no" / "t.csv")
    assert "is no trace" in error_of(capsys, recorded.config)
    with gzip.open(trace, "wt") as file:
        file.write('{"traceEvents": []}')
    assert "holds no events" in error_of(capsys, recorded.path)
    trace.write_bytes(b"")
    assert "is no trace" in error_of(capsys, recorded.path)
    trace.unlink()
    assert "has no trace; record one by running it with profiler=steps" in error_of(capsys, recorded.path)
    assert "has no trace" in error_of(capsys, recorded.path.parent)
    assert "there is no such run or trace" in error_of(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is no run, no sweep and no trace" in error_of(capsys, tmp_path / "empty")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("profiler.active=0", "profiler.active=0: should be greater than or equal to 1"),
        ("profiler.wait=-1", "profiler.wait=-1: should be greater than or equal to 0"),
        ("profiler.warmup=-1", "profiler.warmup=-1: should be"),
        ("profiler.repeat=-2", "profiler.repeat=-2: should be"),
        ("profiler.ranks=[]", "profiler.ranks=[]"),
        ("profiler.ranks=[-1]", "profiler.ranks"),
        ("profiler.ranks=[0,0]", "profiler: ranks=[0, 0] names a rank twice"),
        ("profiler.ranks=[1]", "profiler.ranks=[1]: no rank 1 in a run of 1; rank 0 is the only one"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_run_is_planned(values, tmp_path, override, said):
    with pytest.raises(UserError) as error:
        make_plan(values("profiler=steps", override), default_name="s", cwd=tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_ranks_are_those_of_the_job(values, tmp_path):
    whole = values("profiler=steps", "profiler.ranks=[1,4]", "hardware=local_2")
    with pytest.raises(UserError, match="no rank 4 in a run of 2; there are ranks 0 to 1"):
        make_queued_plan(whole, {}, default_name="s", cwd=tmp_path, code=None, here=True)


def test_a_trace_is_told_without_torch_and_pandas(recorded):
    code = f"""if True:
        import sys, vlm.__main__ as door
        assert door.main(["trace", {str(recorded.path)!r}]) == 0
        print([name for name in ("torch", "pandas", "numpy") if name in sys.modules])"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
