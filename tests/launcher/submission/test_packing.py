"""Packed submissions to a Slurm that has limits and is cut off: how many jobs share how many runs, and none is lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from launcher import slurm_cli
from launcher.runtime.pack.queue import Queue
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm
from launcher.submission.commit import Wanted, to_slurm
from launcher.submission.packing import Packing, without_extras
from tests.launcher.jobs import hardware, no_code
from tests.launcher.submission.test_submit import CRASHES, NEVER, Sweep


class Packed(Sweep):
    """A sweep whose runs share jobs, two for each."""

    packing = Packing(per_job=2, beside=1)

    def submit(self, jobs, rule=NEVER):
        wanted = Wanted(
            self.dir, jobs, no_code(self.dir.path, self.root), self.dir.job_logs, self.root, rule, self.packing
        )
        receipts = to_slurm(wanted, Slurm(self.slurm.env))
        return [receipts[one.plan.run_id] for one in jobs]

    def queued_runs(self):
        """Runs that wait in queues of submissions that Slurm has taken, each as often as it waits."""
        found = []
        for taken in self.slurm.state["jobs"].values():
            plans = Path(taken["script"]).with_suffix(".jsonl")
            if not plans.with_suffix(".withdrawn").exists():
                lines = plans.read_text().splitlines()
                waiting = Queue(self.dir.queue(plans.stem)).list_waiting()
                found += [json.loads(lines[int(entry)])["run_id"] for entry in waiting]
        return found

    def script(self, number=0):
        return Path(list(self.slurm.state["jobs"].values())[number]["script"]).read_text()


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packed:
    monkeypatch.setattr(slurm_cli, "_PAUSES_S", (0.0, 0.0, 0.0, 0.0))
    return Packed(tmp_path)


@pytest.mark.parametrize(
    ("members", "per_job", "beside", "most", "jobs"),
    [
        (1, 4, 1, None, 1), (4, 4, 1, None, 1), (5, 4, 1, None, 2), (1000, 10, 1, None, 100), (1000, 10, 1, 64, 64),
        (9, 1, 3, None, 3), (0, 4, 1, None, 1),
    ],
)  # fmt: skip
def test_how_many_jobs_share_how_many_runs(members, per_job, beside, most, jobs):
    assert Packing(per_job, beside).jobs(members, most) == jobs


@pytest.mark.parametrize(("nodes", "tasks", "takes"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_only_runs_of_one_rank_share_a_job(nodes, tasks, takes):
    assert Packing(2, 1).takes(hardware(nodes=nodes, tasks_per_node=tasks)) is takes


@pytest.mark.parametrize(("count", "array"), [(1, 1), (2, 1), (3, 2), (7, 4)])
def test_one_array_of_as_many_jobs_as_are_needed(sweep, count, array):
    jobs = sweep.jobs(count)
    receipts = sweep.submit(jobs)
    assert sweep.slurm.submitted == [array]
    assert [(r.state, r.job_id, r.new) for r in receipts] == [("SUBMITTED", "100", True)] * count
    assert sweep.queued_runs() == [one.plan.run_id for one in jobs]
    assert "launcher.runtime.pack.worker" in sweep.script() and "--packed" in sweep.script()


def test_never_more_jobs_than_an_array_may_have_and_all_runs_in_one_queue(sweep):
    sweep.slurm.set(max_array=3)
    jobs = sweep.jobs(20)
    sweep.submit(jobs)
    assert sweep.slurm.submitted == [3] and len(sweep.queued_runs()) == 20


@pytest.mark.parametrize(("room", "submitted"), [(8, [8]), (7, [4]), (3, [2]), (1, [1]), (0, [])])
def test_where_slurm_takes_no_more_jobs_fewer_share_all_runs(sweep, room, submitted):
    sweep.slurm.set(max_submit=room)
    jobs = sweep.jobs(16)
    receipts = sweep.submit(jobs)
    assert sweep.slurm.submitted == submitted
    assert {r.state for r in receipts} == ({"SUBMITTED"} if submitted else {"PLANNED"})
    assert sweep.queued_runs() == ([one.plan.run_id for one in jobs] if submitted else [])
    if not submitted:
        sweep.slurm.set(max_submit=100)
        assert all(r.new for r in sweep.submit(jobs)) and len(sweep.queued_runs()) == 16


def test_each_shape_has_an_array_and_runs_of_several_ranks_have_jobs_of_their_own(sweep):
    jobs = [*sweep.jobs(3), *sweep.jobs(2, {"partition": "high"}, first=3), *sweep.jobs(2, {"nodes": 2}, first=5)]
    sweep.slurm.set(partitions=["low", "high"])
    receipts = sweep.submit(jobs)
    assert sweep.slurm.submitted == [2, 1, 2]
    assert [r.job_id for r in receipts] == ["100"] * 3 + ["101"] * 2 + ["102_0", "102_1"]
    assert "pack.worker" not in sweep.script(2) and len(sweep.queued_runs()) == 5


def test_the_same_command_again_submits_only_what_waits_nowhere(sweep):
    jobs = sweep.jobs(6)
    sweep.submit(jobs[:4])
    receipts = sweep.submit(jobs)
    assert [r.new for r in receipts] == [False] * 4 + [True] * 2
    assert sorted(sweep.queued_runs()) == [one.plan.run_id for one in jobs]
    sweep.slurm.end()  # of all workers; what waits in their queues would wait for ever
    again = sweep.submit(jobs)
    assert all(r.new for r in again) and again[0].job_id == "102"


@pytest.mark.parametrize("crash", CRASHES)
def test_a_killed_command_is_cleared_up_by_the_same_command(sweep, crash):
    before, in_sbatch = CRASHES[crash]
    if in_sbatch:
        sweep.slurm.fault("sbatch", "kill", in_sbatch)
    jobs = sweep.jobs(5)
    assert sweep.submit_elsewhere(jobs, before) == -signal.SIGKILL
    sweep.wait_until_free()
    assert [r.state for r in sweep.submit(jobs)] == ["SUBMITTED"] * 5
    assert sorted(sweep.queued_runs()) == [one.plan.run_id for one in jobs], "none twice, none lost"
    assert sum(sweep.slurm.submitted) == 3
    calls = len(sweep.calls)
    assert not any(r.new for r in sweep.submit(jobs)) and "sbatch" not in sweep.calls[calls:]


def test_a_command_killed_while_it_fills_a_queue_leaves_nothing_that_runs(sweep, monkeypatch):
    jobs = sweep.jobs(5)

    def die_in_the_middle():
        fill = Queue.fill

        def some(queue, entries):
            fill(queue, list(entries)[:2])
            signal.raise_signal(signal.SIGKILL)

        Queue.fill = some

    assert sweep.submit_elsewhere(jobs, die_in_the_middle) == -signal.SIGKILL
    assert sweep.slurm.submitted == [] and SweepDir(sweep.dir.path).read_submissions() == []
    sweep.submit(jobs)
    assert sorted(sweep.queued_runs()) == [one.plan.run_id for one in jobs]


def test_an_answer_that_was_lost_is_asked_for_not_submitted_again(sweep):
    sweep.slurm.fault("sbatch", "fail", "after")
    sweep.submit(sweep.jobs(4))
    assert sweep.slurm.submitted == [2] and len(sweep.queued_runs()) == 4


@pytest.mark.parametrize(("peak", "left"), [("measure", None), (None, None), (312.0, 312.0)])
def test_pictures_are_left_to_later_no_peak_is_measured_and_nothing_else_of_the_plan_changes(sweep, peak, left):
    (one,) = sweep.jobs(1)
    plan = one.plan
    plan.execution["tracker"] = {"csv": True, "curves": True}
    plan.execution["throughput"] = {"peak_tflops": peak}
    packed = without_extras(plan)
    assert packed.execution["tracker"] == {"csv": True, "curves": False} and packed.run_id == plan.run_id
    assert packed.execution["throughput"] == {"peak_tflops": left}
    rest = {name: section for name, section in plan.execution.items() if name not in ("tracker", "throughput")}
    assert rest.items() <= packed.execution.items()
    assert packed.science == plan.science and plan.execution["tracker"]["curves"] is True
