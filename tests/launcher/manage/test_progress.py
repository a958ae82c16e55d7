"""How far a sweep is, from the states of its runs."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launcher.manage.progress import Pace, progress_of, told
from launcher.manage.states import RunState
from launcher.manage.status import show_status
from launcher.manage.survey import look_again, open_workers, survey
from launcher.manage.targets import Target
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from tests.launcher.recorded_slurm import RecordedSlurm


def state(
    name: str, step: int | None = None, total: int | None = None, speed: float | None = None, run: str = "a"
) -> RunState:
    return RunState(run, run, (), name, step=step, total_steps=total, samples_per_s=speed)


def test_runs_under_way_count_in_part_and_those_not_begun_as_the_others_do():
    progress = progress_of(
        [state("COMPLETED", 100, 100), state("RUNNING", 50, 100, 8.0), state("RUNNING", 0, 100, 4.0),
         state("PREEMPTED", 25, 100, 9.0), state("SUBMITTED"), state("FAILED", 10, 100), state("CANCELLED", 1, 100)]
    )  # fmt: skip
    assert (progress.runs, progress.done, progress.failed) == (7, 1, 1)
    assert (progress.steps, progress.expected_steps) == (175, 500)
    assert progress.work == 1.75 and progress.left == 3.25
    assert progress.samples_per_s == 12.0, "of those that run now"


def test_where_no_task_says_how_long_it_is_runs_are_all_that_is_known():
    progress = progress_of([state("COMPLETED", 7), state("RUNNING", 3), state("PLANNED")])
    assert progress.expected_steps is None and progress.work == 1 and progress.left == 2
    assert told(progress) == "[########................] 1/3 runs"


@given(st.lists(st.tuples(
    st.sampled_from(["COMPLETED", "RUNNING", "SUBMITTED", "FAILED", "CANCELLED", "PLANNED", "STALLED"]),
    st.none() | st.integers(0, 200), st.none() | st.integers(0, 100)), max_size=8))  # fmt: skip
def test_what_is_done_and_what_is_left_are_all_runs_but_those_that_were_lost(rows):
    progress = progress_of([state(*row) for row in rows])
    lost = sum(name in ("FAILED", "CANCELLED") for name, _, _ in rows)
    assert abs(progress.work + progress.left - (len(rows) - lost)) < 1e-9
    assert 0 <= progress.done <= progress.work + 1e-9 and told(progress)


def test_the_pace_is_that_of_the_last_minutes():
    pace = Pace()
    begun = progress_of([state("RUNNING", 0, 100)] * 4)
    assert pace.runs_per_hour(0.0, begun) is None
    half = progress_of([state("RUNNING", 50, 100)] * 4)
    assert pace.runs_per_hour(60.0, half) == 120.0
    line = told(half, 120.0)
    assert "200/400 steps" in line and "120 runs/h" in line and "0:01:00 left" in line
    for minute in range(2, 60):
        last = pace.runs_per_hour(60.0 * minute, half)
    assert last is None, "nothing has moved for long"
    assert pace.runs_per_hour(3600.0, begun) is None, "a checkpoint earlier"


def test_of_what_is_done_no_file_is_read_again(tmp_path: Path, monkeypatch):
    sweep = SweepDir(tmp_path / "sweep")
    for run in ("a", "b", "c"):
        sweep.run(run).path.mkdir(parents=True)
        sweep.run(run).plan.write_text("{}")
        sweep.run(run).status.write_text(json.dumps({"state": "PREEMPTED" if run == "b" else "COMPLETED"}))
    before = survey([Target(sweep)], {})
    read: list[str] = []
    reads = RunDir.read
    monkeypatch.setattr(RunDir, "read", lambda self, path: (read.append(self.path.name), reads(self, path))[1])
    sweep.run("b").status.write_text(json.dumps({"state": "COMPLETED", "total_steps": 9}))
    now = look_again(before, [Target(sweep)], {})
    assert set(read) == {"b"}
    assert [(s.run_id, s.state, s.total_steps) for s in now.states] == [
        ("a", "COMPLETED", None), ("b", "COMPLETED", 9), ("c", "COMPLETED", None),
    ]  # fmt: skip


def test_a_study_is_watched_for_as_long_as_a_worker_may_begin_a_trial(tmp_path: Path, capsys, monkeypatch):
    sweep, slurm = SweepDir(tmp_path / "found"), RecordedSlurm(tmp_path / "slurm")
    sweep.run("a").path.mkdir(parents=True)
    sweep.run("a").plan.write_text("{}")
    sweep.run("a").status.write_text(json.dumps({"state": "COMPLETED"}))
    sweep.add_event("intent", "tok", runs=[], slurm_conf=None, logs=None, workers=2)
    sweep.add_event("submitted", "tok", job_id="7")
    script = str(sweep.script("tok"))
    slurm.queue(("7_0", "PENDING"), script=script)
    looks, jobs = tmp_path / "looks", tmp_path / "slurm" / "squeue.out"
    slurm.does("squeue", f"echo >> {looks}; [ $(wc -l < {looks}) -lt 3 ] || : > {jobs}")
    assert [names for _, names in open_workers(sweep, slurm.env)] == [["7_0"]]
    monkeypatch.setattr("launcher.manage.status._LOOK_EVERY_S", 0.01)
    assert show_status(sweep.path, slurm.env, watch=True, as_json=False) == 0
    assert len(looks.read_text()) == 3, "asked until no worker was left"
    assert "1 COMPLETED" in capsys.readouterr().out
