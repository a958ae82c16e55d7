"""Submitting to a Slurm that refuses, forgets, goes away or kills: nothing is submitted twice, nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import slurm_cli
from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError
from launcher.submission import commit
from launcher.submission.commit import Wanted, to_slurm
from launcher.submission.jobs import Job, Receipt
from launcher.submission.reconcile import Rule
from launcher.submission.submit import claim_folders, settle
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.jobs import job, no_code

NEVER = Rule()


class Sweep:
    """A sweep of jobs without Hydra, and the Slurm that it is submitted to."""

    def __init__(self, folder: Path, **state: Any) -> None:
        self.slurm = FakeSlurm(folder / "slurm", **state)
        self.root = folder / "my runs"
        self.dir = SweepDir(self.root / "sweep")

    def jobs(self, count: int, queue: dict[str, Any] | None = None, first: int = 0) -> list[Job]:
        return [job(self.root, first + number, queue) for number in range(count)]

    def submit(self, jobs: list[Job], rule: Rule = NEVER) -> list[Receipt]:
        """As a command does."""
        snapshot = no_code(self.dir.path, self.root)
        receipts = to_slurm(Wanted(self.dir, jobs, snapshot, self.dir.job_logs, self.root, rule), Slurm(self.slurm.env))
        return [receipts[one.plan.run_id] for one in jobs]

    def submit_elsewhere(self, jobs: list[Job], before: Callable[[], object] = lambda: None, rule: Rule = NEVER) -> int:
        """As a command of its own does, whose end is this function's result (negative: the signal)."""
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # who tests in the background ignores it
                before()
                self.submit(jobs, rule)
                code = 0
            except UserError:
                code = 1
            except KeyboardInterrupt:
                code = 76
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def wait_until_free(self) -> None:
        """Until nobody holds the lock any more: an sbatch may outlive its command for a moment."""
        with (self.dir.path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

    @property
    def calls(self) -> list[str]:
        """Slurm's commands that were called, tests told apart."""
        return [c[0] + (" --test-only" if "--test-only" in c else "") for c in self.slurm.state["calls"]]

    def submitted_runs(self) -> list[str]:
        """Runs of all jobs that Slurm has taken, as the plans that the jobs will read say."""
        found = []
        for taken in self.slurm.state["jobs"].values():
            plans = Path(taken["script"]).with_suffix(".jsonl")
            if not plans.with_suffix(".withdrawn").exists():
                lines = [json.loads(line)["run_id"] for line in plans.read_text().splitlines()]
                assert len(lines) == len(taken["states"]), "an element for each plan"
                found += lines
        return found


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(slurm_cli, "_PAUSES_S", (0.0, 0.0, 0.0, 0.0))
    return Sweep(tmp_path)


def rows(receipts: list[Receipt]) -> list[tuple[str, str | None, bool]]:
    return [(receipt.state, receipt.job_id, receipt.new) for receipt in receipts]


def test_one_array_for_one_shape_and_a_receipt_for_each_run(sweep):
    receipts = sweep.submit(sweep.jobs(3))
    assert rows(receipts) == [("SUBMITTED", f"100_{i}", True) for i in range(3)]
    assert sweep.calls == ["sbatch --test-only", "scontrol", "sbatch"]
    assert sweep.submitted_runs() == [receipt.run_id for receipt in receipts]


def test_a_single_run_is_a_plain_job(sweep):
    assert rows(sweep.submit(sweep.jobs(1))) == [("SUBMITTED", "100", True)]


@pytest.mark.parametrize(("count", "sizes"), [(4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])])
def test_arrays_are_cut_where_the_largest_index_ends(sweep, count, sizes):
    sweep.slurm.set(max_array=4)
    receipts = sweep.submit(sweep.jobs(count))
    assert sweep.slurm.submitted == sizes
    assert [r.job_id for r in receipts[:4]] == ["100_0", "100_1", "100_2", "100_3"]
    assert sweep.submitted_runs() == [receipt.run_id for receipt in receipts]


def test_each_shape_has_its_array_and_all_are_tested_before_one_is_queued(sweep):
    jobs = [*sweep.jobs(2), *sweep.jobs(2, {"nodes": 2}, first=2)]
    jobs[1], jobs[2] = jobs[2], jobs[1]
    receipts = sweep.submit(jobs)
    assert [receipt.job_id for receipt in receipts] == ["100_0", "101_0", "100_1", "101_1"]
    assert sweep.calls == ["sbatch --test-only", "sbatch --test-only", "scontrol", "sbatch", "sbatch"]


def test_a_shape_that_slurm_refuses_keeps_all_from_being_queued(sweep):
    jobs = [*sweep.jobs(2), *sweep.jobs(2, {"partition": "nowhere"}, first=2)]
    with pytest.raises(SlurmError, match="Invalid partition name"):
        sweep.submit(jobs)
    assert sweep.slurm.submitted == [] and sweep.dir.read_submissions() == []
    assert len(sweep.submit(jobs[:2])) == 2


@pytest.mark.parametrize("room", [0, 1, 2, 5, 7, 8])
@pytest.mark.parametrize("test_counts", [False, True])
def test_the_submit_limit_is_filled_exactly_and_the_same_command_adds_the_rest(sweep, room, test_counts):
    sweep.slurm.set(max_submit=room, max_array=5, test_counts=test_counts)
    jobs = sweep.jobs(8)
    receipts = sweep.submit(jobs)
    assert sum(sweep.slurm.submitted) == room
    assert [r.state for r in receipts] == ["SUBMITTED"] * room + ["PLANNED"] * (8 - room)
    assert all(r.job_id is None and not r.new for r in receipts[room:])
    sweep.slurm.end()
    sweep.slurm.set(max_submit=100)
    for ended in jobs[:room]:
        ended.plan.rundir.write_status(state="COMPLETED")
    again = sweep.submit(jobs)
    assert [r.new for r in again] == [False] * room + [True] * (8 - room)
    assert sorted(sweep.submitted_runs()) == [j.plan.run_id for j in jobs]


@pytest.mark.parametrize("failed", [False, True])
def test_what_is_done_queued_or_running_is_left_alone_and_what_failed_unless_it_is_asked_for(sweep, failed, capfd):
    jobs = sweep.jobs(6)
    sweep.submit(jobs[:5])
    states = ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
    taken = sweep.slurm.state["jobs"]
    taken["100"]["states"] = states
    sweep.slurm.set(jobs=taken)
    for number, state in ((2, "COMPLETED"), (3, "FAILED")):
        rundir = jobs[number].plan.rundir
        rundir.add_attempt_event(event="start", attempt=1, job_id=f"100_{number}")
        rundir.write_status(state=state, reason="bad luck" if state == "FAILED" else "")
    receipts = sweep.submit(jobs, Rule(failed=failed))
    after = ["SUBMITTED"] * 3 if failed else ["FAILED", "SUBMITTED", "SUBMITTED"]
    assert [r.state for r in receipts] == ["SUBMITTED", "RUNNING", "COMPLETED", *after]
    names = ["101_0", "101_1", "101_2"] if failed else ["100_3", "101_0", "101_1"]
    assert [r.job_id for r in receipts] == ["100_0", "100_1", "100_2", *names]
    assert [r.new for r in receipts] == [False, False, False, failed, True, True]
    said = capfd.readouterr().err
    assert f"{jobs[3].plan.rundir.path}: bad luck" in said
    assert ("launch.retry=failed" in said) == (not failed)


def test_a_run_whose_job_is_gone_without_a_word_has_failed(sweep):
    jobs = sweep.jobs(2)
    sweep.submit(jobs)
    sweep.slurm.end(forget=True)
    sweep.slurm.set(accounting=False)
    for one, heartbeat in zip(jobs, (0, 1e12), strict=True):  # one has long been silent, one is alive
        index = jobs.index(one)
        one.plan.rundir.add_attempt_event(event="start", attempt=1, job_id=f"100_{index}")
        one.plan.rundir.write_status(state="RUNNING", heartbeat=heartbeat)
    assert [r.state for r in sweep.submit(jobs)] == ["FAILED", "RUNNING"]
    assert [r.new for r in sweep.submit(jobs, Rule(failed=True))] == [True, False]


def at_event(event: str, when: str) -> Callable[[], None]:
    """Kills this process right before or after ``event`` is written down."""

    def patch() -> None:
        write = SweepDir.add_event

        def add_event(self: SweepDir, name: str, token: str, **values: Any) -> None:
            if name == event and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, name, token, **values)
            if name == event:
                os.kill(os.getpid(), signal.SIGKILL)

        SweepDir.add_event = add_event  # type: ignore[method-assign]

    return patch


def after_call(name: str) -> Callable[[], None]:
    """Kills this process right after it has called ``commit.<name>``."""

    def patch() -> None:
        call = getattr(commit, name)

        def called(*args: Any) -> None:
            call(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(commit, name, called)

    return patch


CRASHES = {
    "after the decision was told": (after_call("tell"), None),
    "after the folders were claimed": (after_call("claim_folders"), None),
    "before the intent": (at_event("intent", "before"), None),
    "after the intent": (at_event("intent", "after"), None),
    "in sbatch, before Slurm has it": (lambda: None, "before"),
    "in sbatch, after Slurm has it": (lambda: None, "after"),
    "before the receipt": (at_event("submitted", "before"), None),
    "after the receipt": (at_event("submitted", "after"), None),
}


@pytest.mark.parametrize("forgotten", [False, True], ids=["in the queue", "in the books"])
@pytest.mark.parametrize("crash", CRASHES)
def test_a_killed_command_is_cleared_up_by_the_same_command(sweep, crash, forgotten):
    before, in_sbatch = CRASHES[crash]
    sweep.slurm.set(max_array=3)
    if in_sbatch:
        sweep.slurm.fault("sbatch", "kill", in_sbatch, skip=1)  # the second of three arrays
    jobs = sweep.jobs(8)
    assert sweep.submit_elsewhere(jobs, before) == -signal.SIGKILL
    sweep.wait_until_free()
    if forgotten:
        taken = sweep.slurm.state["jobs"]
        sweep.slurm.set(jobs={name: {**one, "forgotten": True} for name, one in taken.items()})
    receipts = sweep.submit(jobs)
    assert [r.state for r in receipts] == ["SUBMITTED"] * 8
    assert sorted(sweep.submitted_runs()) == [j.plan.run_id for j in jobs], "none twice, none lost"
    assert not any(s.job_id is None and not s.withdrawn for s in sweep.dir.read_submissions())
    numbers = {name for name, _ in ((r.job_id.partition("_")[0], r) for r in receipts)}
    assert numbers <= set(sweep.slurm.state["jobs"])
    calls = len(sweep.slurm.state["calls"])
    assert not any(r.new for r in sweep.submit(jobs))
    assert "sbatch" not in sweep.calls[calls:]


MOVES = {
    "before it is written down": (at_event("replaced", "before"), 0),
    "after it is written down": (at_event("replaced", "after"), 0),
    "between two moves": (lambda: after_renames(1), 1),
    "after the moves": (lambda: after_renames(2), 2),
    "after the intent": (at_event("intent", "after"), 2),
}


def after_renames(count: int) -> None:
    """Kills this process once it has moved so many folders aside."""
    rename = Path.rename

    def counted(self: Path, target: Path) -> Path:
        nonlocal count
        moved = rename(self, target)
        count -= "replaced" in Path(target).parts
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.rename = counted  # type: ignore[method-assign]


@pytest.mark.parametrize("move", MOVES)
def test_runs_of_other_code_are_moved_aside_whole_whenever_the_command_is_killed(sweep, move, capfd):
    patch, moved = MOVES[move]
    jobs = sweep.jobs(3)
    sweep.submit(jobs)
    sweep.slurm.end()
    for index, state in enumerate(["COMPLETED", "FAILED", "COMPLETED"]):
        rundir = jobs[index].plan.rundir
        rundir.add_attempt_event(event="start", attempt=1, job_id=f"100_{index}")
        rundir.write_status(state=state)
        (rundir.path / "result").write_text(f"of {index}")
        made_by = "old" if index < 2 else no_code(sweep.dir.path, sweep.root).id
        rundir.plan.write_text(json.dumps({**json.loads(rundir.plan.read_text()), "code": made_by}))
    assert not any(r.new for r in sweep.submit(jobs))
    assert "2 COMPLETED: are done, 1 of them made by other code" in capfd.readouterr().err
    assert sweep.submit_elsewhere(jobs, patch, Rule(stale=True)) == -signal.SIGKILL
    sweep.wait_until_free()
    assert len(list(sweep.dir.path.glob("replaced/*"))) == moved
    receipts = sweep.submit(jobs, Rule(stale=True))
    assert [r.job_id and r.job_id.partition("_")[0] for r in receipts] == ["101", "101", "100"]
    assert sorted(p.read_text() for p in sweep.dir.path.glob("replaced/*/result")) == ["of 0", "of 1"]
    assert sweep.dir.list_runs() == [j.plan.run_id for j in jobs]
    assert not jobs[0].plan.rundir.status.exists() and (jobs[2].plan.rundir.path / "result").exists()
    assert not any(r.new for r in sweep.submit(jobs, Rule(stale=True)))
    assert sweep.slurm.submitted == [3, 2]


def test_what_is_moved_aside_again_gets_the_next_number(sweep):
    (one,) = sweep.jobs(1)
    for _ in range(2):
        claim_folders([one])
        with sweep.dir.locked():
            sweep.dir.move_aside([one.plan.run_id])
    assert sorted(p.name for p in sweep.dir.replaced.iterdir()) == [f"{one.plan.run_id}.{n}" for n in (1, 2)]


def test_a_run_that_is_trained_is_not_moved_aside(sweep):
    (one,) = sweep.jobs(1)
    claim_folders([one])
    with one.plan.rundir.lock(), sweep.dir.locked(), pytest.raises(UserError, match="another process is training it"):
        sweep.dir.move_aside([one.plan.run_id])
    assert one.plan.rundir.plan.exists()


def test_a_job_that_started_is_adopted_though_slurm_knows_nothing(sweep):
    jobs = sweep.jobs(2)
    sweep.submit_elsewhere(jobs, at_event("submitted", "before"))
    sweep.slurm.set(accounting=False, jobs={})
    (submission,) = sweep.dir.read_submissions()
    sweep.dir.started(submission.token).write_text("100\n")
    settle(sweep.dir, Slurm(sweep.slurm.env))
    assert [s.job_id for s in sweep.dir.read_submissions()] == ["100"]


def test_a_job_marks_its_start_in_its_first_lines(sweep):
    """So that the next command adopts it even where Slurm keeps no books."""
    jobs = sweep.jobs(2)
    sweep.submit_elsewhere(jobs, at_event("submitted", "before"))
    (sweep.slurm.bin / "srun").write_text("#!/bin/sh\n")
    sweep.slurm.run()
    sweep.slurm.end(forget=True)
    sweep.slurm.set(accounting=False)
    settle(sweep.dir, Slurm(sweep.slurm.env))
    assert [s.job_id for s in sweep.dir.read_submissions()] == ["100"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_in_sbatch_is_cleared_up_by_the_same_command(sweep, when):
    jobs = sweep.jobs(3)
    sweep.slurm.fault("sbatch", "interrupt", when)
    assert sweep.submit_elsewhere(jobs) == 76
    sweep.wait_until_free()
    assert [r.state for r in sweep.submit(jobs)] == ["SUBMITTED"] * 3
    assert sorted(sweep.submitted_runs()) == [j.plan.run_id for j in jobs]


def test_an_answer_that_was_lost_is_asked_for_not_submitted_again(sweep):
    sweep.slurm.fault("sbatch", "fail", "after")
    assert rows(sweep.submit(sweep.jobs(2))) == [("SUBMITTED", "100_0", True), ("SUBMITTED", "100_1", True)]
    assert sweep.slurm.submitted == [2] and sweep.calls.count("sbatch") == 1


@pytest.mark.parametrize("command", ["sbatch --test-only", "scontrol", "sbatch"])
def test_a_controller_that_comes_back_is_waited_for(sweep, command):
    sweep.slurm.fault(command, "fail", times=3)
    assert [r.new for r in sweep.submit(sweep.jobs(2))] == [True, True]
    assert sweep.slurm.submitted == [2]


@pytest.mark.parametrize("command", ["scontrol", "sbatch --test-only", "sbatch", "squeue", "sacct"])
def test_a_controller_that_stays_away_leaves_all_planned(sweep, command):
    jobs = sweep.jobs(2)
    if command in ("squeue", "sacct"):
        sweep.submit_elsewhere(jobs, at_event("submitted", "before"))
        sweep.slurm.end(forget=True)
        taken = sweep.slurm.state["jobs"]
        sweep.slurm.set(jobs={n: {**one, "states": ["PENDING"] * 2} for n, one in taken.items()})
    sweep.slurm.fault(command, "fail", times=1000)
    with pytest.raises(SlurmAway, match="Unable to contact slurm controller"):
        sweep.submit(jobs)
    sweep.slurm.set(faults=[])
    assert [r.state for r in sweep.submit(jobs)] == ["SUBMITTED"] * 2
    assert sweep.slurm.submitted == [2]


@pytest.mark.parametrize(
    "words",
    ["Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)",
     "Zero Bytes were transmitted or received"],
)  # fmt: skip
def test_slurms_words_for_being_away_are_known(sweep, words):
    sweep.slurm.fault("sbatch", "fail", says=f"sbatch: error: Batch job submission failed: {words}", times=2)
    assert [r.new for r in sweep.submit(sweep.jobs(1))] == [True]


def test_of_two_commands_at_once_one_wins(sweep):
    jobs = sweep.jobs(2)
    with sweep.dir.locked():
        assert sweep.submit_elsewhere(jobs) == 1
        with pytest.raises(UserError, match="submitting it or runs it here; this one changed nothing"):
            sweep.submit(jobs)
    assert sweep.slurm.submitted == []
    sweep.submit(jobs)


def test_the_lock_lives_as_long_as_an_sbatch_that_lost_its_command(sweep):
    """A killed command's sbatch may still get through: the next command must not ask Slurm too early."""
    sweep.slurm.fault("sbatch", "kill-and-wait")
    jobs = sweep.jobs(2)
    go = Path(sweep.slurm.bin.parent / "go")
    os.mkfifo(go)
    assert sweep.submit_elsewhere(jobs) == -signal.SIGKILL
    with pytest.raises(UserError, match="another command is submitting it"), sweep.dir.locked():
        pass
    with go.open("w") as gate:
        gate.write("go")
    sweep.wait_until_free()
    receipts = sweep.submit(jobs)
    assert [r.state for r in receipts] == ["SUBMITTED"] * 2 and sweep.slurm.submitted == [2]


@pytest.mark.parametrize("file", ["submissions.jsonl", "members.jsonl"])
def test_a_torn_last_line_is_passed_over(sweep, file):
    jobs = sweep.jobs(4)
    sweep.submit(jobs[:2])
    with (sweep.dir.path / file).open("ab") as written:
        written.write('{"event": "intent", "run_id": "ä'.encode()[:-1])
    receipts = sweep.submit(jobs)
    assert [r.new for r in receipts] == [False, False, True, True]
    assert len(sweep.dir.read_submissions()) == 2 and len(sweep.dir.read_members()) == 4


def test_a_thousand_members_take_a_handful_of_calls(sweep):
    jobs = sweep.jobs(1000)
    assert len(sweep.submit(jobs)) == 1000
    first = len(sweep.calls)
    assert not any(r.new for r in sweep.submit(jobs))
    sweep.slurm.end(forget=True)
    for one in jobs:
        one.plan.rundir.write_status(state="COMPLETED")
    queued, before = len(sweep.calls), {p: p.lstat().st_mtime_ns for p in sweep.dir.path.rglob("*")}
    assert {r.state for r in sweep.submit(jobs)} == {"COMPLETED"}
    assert first == 3 and queued == 4 and len(sweep.calls) == queued, "of what is done Slurm is not asked"
    assert {p: p.lstat().st_mtime_ns for p in sweep.dir.path.rglob("*")} == before


def test_a_folder_of_another_config_is_left_alone(sweep):
    (one,) = sweep.jobs(1)
    claim_folders([one])
    text = one.plan.rundir.plan.read_text()
    one.plan.rundir.plan.write_text(text.replace('"number": 0', '"number": 1'))
    with pytest.raises(UserError, match="belongs to another config"):
        sweep.submit([one])
    assert sweep.slurm.submitted == []


def test_a_users_own_filters_do_not_hide_jobs(sweep):
    env = sweep.slurm.env | {
        "SQUEUE_PARTITION": "other",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "x",
    }
    seen = Slurm(env)._env
    assert "SQUEUE_PARTITION" not in seen and "SBATCH_TIMELIMIT" not in seen and "SLURM_JOB_ID" not in seen
    assert seen["SLURM_CONF"] == "x"
