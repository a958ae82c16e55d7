"""What becomes of a job whose ranks are gone: the policy, why it ended by Slurm's word, and the door itself."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import requeue
from launcher.requeue import BY_THE_SHELL, classify
from launcher.runtime.errors import ExitCode
from launcher.runtime.files import append_json_line, write_json
from launcher.runtime.plan import Plan
from launcher.runtime.policy import Ended, decide, judge, what_broke
from launcher.runtime.settings import RequeueSettings
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm
from tests.conftest import REPOSITORY
from tests.launcher.jobs import job as job_of
from tests.launcher.recorded_slurm import AWAY, RecordedSlurm

# Recorded from scontrol show job --oneliner of Slurm 22.05.8, shortened.
SHOWN = (
    "JobId=15 ArrayJobId=12 ArrayTaskId=3 JobName=wrap UserId=u(1000) GroupId=u(1000) MCS_label=N/A QOS=normal "
    "JobState={state} Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:30:00 TimeLimit=01:00:00 TimeMin=N/A AccrueTime=Unknown StartTime=2026-11-22T05:00:00 EndTime={end} "
    "Deadline=N/A PreemptEligibleTime=2026-11-22T05:00:00 PreemptTime={preempted} SuspendTime=None SecsPreSuspend=0 "
    "Scheduler=Backfill Partition=low NodeList=n1 BatchHost=n1 NumNodes=1 Command=(null) WorkDir=/tmp Power="
)
NOW = datetime(2026, 11, 22, 5, 30)
LATER = "2026-11-22T06:00:00"


def shown(state: str = "RUNNING", end: str = LATER, preempted: str = "None") -> str:
    return SHOWN.format(state=state, end=end, preempted=preempted)


def words(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split())


LIMITS = RequeueSettings(max_attempts=4, max_without_progress=3, max_timeouts=2)


@pytest.mark.parametrize(
    ("ended", "back", "failed", "said"),
    [
        (Ended(75, "preempted"), True, False, "preempted"),
        (Ended(75, "asked to stop"), True, False, "asked to stop"),
        (Ended(76, "out of time", timeouts=1), True, False, "out of time"),
        (Ended(75, "out of time", timeouts=2), False, False, "out of time; max_num_timeout=2 "),
        (Ended(75, "preempted", timeouts=2), True, False, "preempted"),
        (Ended(70, "broke down: oh"), True, False, "broke down: oh"),
        (Ended(137, "broke down: killed", starts=3, without_progress=2), True, False, "broke down: killed"),
        (Ended(137, "broke down: killed", starts=4), False, True, "max_attempts=4 .* [(]last: killed[)]; see logs"),
        (Ended(75, "preempted", 3, 3), False, True, "3 attempts in a row made no progress [(]last: preempted[)]"),
        (Ended(0, "asked to stop"), False, False, "exit code 0"),
        (Ended(1, "broke down: oh"), False, False, "exit code 1"),
        (Ended(2, "broke down: oh"), False, False, "exit code 2"),
        (Ended(3, "preempted", 9, 9), False, False, "exit code 3"),
        (Ended(75, "preempted", cancelled=True), False, False, "cancelled"),
        (Ended(70, "broke down: oh", 9, 9, cancelled=True), False, False, "cancelled"),
    ],
)
def test_the_policy(ended, back, failed, said):
    found = decide(ended, LIMITS)
    assert (found.requeue, found.failed) == (back, failed)
    assert re.search(said, found.reason), found.reason


def test_timeouts_are_not_counted_where_nobody_limits_them():
    assert decide(Ended(75, "out of time", timeouts=500), RequeueSettings()).requeue


@pytest.mark.parametrize(
    ("line", "code", "cause"),
    [
        (shown(preempted="2026-11-22T05:29:40"), 75, "preempted"),
        (shown(preempted="2026-11-22T05:29:40", end="2026-11-22T05:30:20"), 75, "preempted"),  # a short grace
        (shown(preempted="2026-11-22T04:00:00"), 75, "asked to stop"),  # an earlier start was
        (shown(end="2026-11-22T05:32:00"), 75, "out of time"),
        (shown(end="2026-11-22T05:32:00"), 76, "out of time"),
        (shown(end="2026-11-22T05:32:00"), 128 + signal.SIGUSR2, "out of time"),  # before it could listen
        (shown(end="2026-11-22T05:32:00"), 70, "broke down: oh"),
        (shown(end="2026-11-22T05:34:00"), 75, "asked to stop"),
        (shown(end="Unknown"), 75, "asked to stop"),
        (shown(), 137, "broke down: oh"),
        (shown("COMPLETING", preempted="2026-11-22T05:29:40"), 75, None),
        (shown("CANCELLED"), 75, None),
        (shown("PENDING"), 70, None),
        ("", 75, "asked to stop"),  # no scontrol here
        ("", 137, "broke down: oh"),
    ],
)
def test_why_it_ended(line, code, cause):
    assert classify(words(line), code, "oh", NOW, 90) == cause


def test_a_shell_that_lives_on_while_slurm_runs_the_job_anew_leaves_it_alone():
    # Its node was lost and given up: the job it would requeue is the one that goes on elsewhere.
    line = words(shown()) | {"Restarts": "2"}
    assert [classify(line, code, "oh", NOW, 90, restarts=1) for code in (75, 76, 137)] == [None] * 3
    assert classify(line, 137, "oh", NOW, 90, restarts=2) == "broke down: oh"


@dataclass
class Door:
    """A run, its sweep, a recorded Slurm, and what the batch script calls."""

    root: Path
    slurm: RecordedSlurm
    plan: Plan

    @property
    def plans(self) -> Path:
        return self.root / "sweep" / "submissions" / "t1.jsonl"

    def limit(self, **limits: Any) -> None:
        self.plan.execution["requeue"] = limits
        self.write()

    def write(self) -> None:
        self.plans.parent.mkdir(parents=True, exist_ok=True)
        self.plans.write_text("{}\n" * 3 + json.dumps(self.plan.to_json()) + "\n")

    def started(self, step: int = 0, failed: str = "", **record: Any) -> None:
        """An attempt of element 3 began, and rank 1 of it told how it ended."""
        rundir = self.plan.rundir
        number = len(rundir.attempt_events()) + 1
        rundir.path.mkdir(parents=True, exist_ok=True)
        rundir.add_attempt_event(event="start", attempt=number, job_id="12_3", incarnation=f"i{number}", step=step)
        if failed:
            file = rundir.failure(f"i{number}", 1)
            file.parent.mkdir(parents=True)
            told = {"rank": 1, "host": "n2", "kind": "OSError", "message": failed, "time": "1", "after_another": False}
            write_json(file, told | record)
        rundir.write_status(state="RUNNING", step=step, loss=0.5)

    def __call__(self, code: int, path: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        job = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
        env = self.slurm.env | job | {"PYTHONPATH": str(REPOSITORY)} | ({"PATH": path} if path else {}) | more
        options = ("--submission", "t1", "--warned", "90", "--code", str(code))
        command = [sys.executable, "-uP", "-m", "launcher.requeue", str(self.plans), *options]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def when_asked(self, script: str) -> None:
        """scontrol requeue runs ``script``."""
        last = f"tail -n 1 '{self.root}/slurm/calls'"
        self.slurm.does("scontrol", f'case "$({last})" in "scontrol requeue "*) {script};; esac')

    @property
    def status(self) -> tuple[str, str]:
        status = self.plan.rundir.read(self.plan.rundir.status) or {}
        return status["state"], status.get("reason", "")

    @property
    def asked(self) -> list[str]:
        return [call for call in self.slurm.called("scontrol") if call.startswith("scontrol requeue")]

    @property
    def reasons(self) -> list[str]:
        return [e["reason"] for e in self.plan.rundir.attempt_events() if e["event"] == "requeue"]


@pytest.fixture
def door(tmp_path):
    made = Door(tmp_path, RecordedSlurm(tmp_path / "slurm"), job_of(tmp_path, 7).plan)
    made.write()
    made.slurm.says("scontrol", shown(end="2099-01-01T00:00:00"))
    return made


def test_a_stopped_job_is_recorded_and_then_requeued(door):
    door.started(5)
    door.when_asked(f"cp {door.plan.rundir.attempts} {door.root}/before")
    done = door(75)
    assert (done.returncode, done.stderr) == (0, "") and door.asked == ["scontrol requeue 12_3"]
    assert door.status == ("REQUEUED", "asked to stop") and door.reasons == ["asked to stop"]
    event = json.loads((door.root / "before").read_text().splitlines()[-1])
    assert (event["event"], event["attempt"], event["job_id"]) == ("requeue", 1, "12_3"), "recorded before it was asked"
    assert door.plan.rundir.read(door.plan.rundir.status)["loss"] == 0.5


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_its_user_must_mend_is_left_alone(door, code):
    door.started()
    assert door(code).returncode == 1
    assert door.slurm.calls == [] and door.status[0] == "RUNNING"


def test_a_rank_that_hung_broke_down_though_it_ends_as_one_that_was_stopped(door):
    door.started(failed="made no progress for 900 s", kind="Hung", code=76)
    assert door(76).returncode == 0
    assert door.reasons == ["broke down: rank 1 on n2: Hung: made no progress for 900 s"]


def test_where_slurm_runs_a_later_start_of_the_job_all_is_left_to_that(door):
    door.started(5)
    door.slurm.says("scontrol", shown().replace("Restarts=0", "Restarts=1"))
    assert door(76).returncode == 0
    assert (door.asked, door.reasons, door.status[0]) == ([], [], "RUNNING")


def test_the_rank_that_failed_first_decides_not_the_highest_code(door):
    door.started(failed="no such file", code=1)
    assert door(76).returncode == 1 and door.asked == []
    door.started(failed="oh", code=70)
    assert door(76).returncode == 0
    assert door.status == ("REQUEUED", "broke down: rank 1 on n2: OSError: oh")
    door.started(failed="rank 0 lost another rank", code=3, after_another=True)
    assert door(3).returncode == 0, "nobody can mend that a peer was lost"
    assert door.reasons[1:] == ["broke down: a rank was killed, or its node was lost"]
    assert what_broke(door.plan.rundir, "12_3", 1, 0)[0] == 1, "that record is not of a start after the requeue"


def test_a_rank_that_refused_before_it_began_decides_too(door):
    refused = SweepDir(door.root / "sweep").refusal("t1", "12_3", "0")
    refused.write_text("1\n")
    assert door(76).returncode == 1 and door.asked == []
    door.started()  # after which failures are told by the attempt itself
    assert door(76).returncode == 0 and len(door.asked) == 1


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_slurm_is_ending_is_left_to_it(door, state):
    door.started()
    door.slurm.says("scontrol", shown(state))
    assert door(75).returncode == 0
    assert door.asked == [] and door.reasons == [] and door.status[0] == "RUNNING"


def test_a_scancel_at_the_last_moment_wins(door):
    door.started()
    flip = f"[ -e {door.root}/seen ] && echo '{shown('COMPLETING')}' && exit; touch {door.root}/seen"
    door.slurm.does("scontrol", flip)
    assert door(75).returncode == 0 and door.asked == []
    assert door.status[0] == "RUNNING", "it is not shown as requeued"


@pytest.mark.parametrize(("job", "token", "back"), [("12_3", "t1", False), ("12_4", "t1", True), ("12_3", "t2", True)])
def test_what_launcher_cancel_has_written_down_is_obeyed(door, job, token, back):
    door.started()
    SweepDir(door.root / "sweep").add_event("cancelled", token, jobs=[job])
    assert door(75).returncode == 0, "Slurm is about to end it"
    assert bool(door.asked) == back == bool(door.reasons)


def test_a_job_that_makes_no_progress_is_failed_with_words(door):
    door.limit(max_without_progress=2)
    door.started(0)
    assert door(137).returncode == 0
    door.started(0)
    done = door(137)
    said = "2 attempts in a row made no progress (last: a rank was killed (SIGKILL)); see logs"
    assert done.returncode == ExitCode.TRAINING_FAILED and done.stderr == f"error: {said}\n"
    assert door.status == ("FAILED", said) and len(door.asked) == 1
    assert json.loads(door.plan.rundir.summary.read_text())["status"] == "FAILED"


def test_a_newer_checkpoint_is_progress(door):
    door.limit(max_without_progress=1)
    door.started(0)
    door.plan.rundir.checkpoint("step", 4, 1).mkdir(parents=True)
    door.plan.rundir.checkpoint("best", 9, 1).mkdir(parents=True)
    assert door(137).returncode == 0
    door.started(4)
    assert door(137).returncode == 3


def test_a_job_that_dies_before_it_begins_is_not_tried_for_ever(door):
    door.limit(max_without_progress=3)
    assert [door(137).returncode for _ in range(3)] == [0, 0, 3]
    assert door.status[0] == "FAILED"


def test_time_outs_are_counted_apart(door):
    door.limit(max_timeouts=1)
    soon = (datetime.now() + timedelta(seconds=60)).isoformat(timespec="seconds")
    for step, preempted in ((1, False), (2, True), (3, False)):
        door.started(step)
        door.slurm.says("scontrol", shown(end=soon, preempted=soon if preempted else "None"))
        code = door(75).returncode
    assert code == 1 and door.reasons == ["out of time", "preempted"]
    assert door.status == (
        "PREEMPTED", "out of time; max_num_timeout=1 requeues for that are used up; the same command goes on"
    )  # fmt: skip


def test_a_completed_run_is_left_alone(door):
    door.started()
    door.plan.rundir.write_status(state="COMPLETED")
    assert door(137).returncode == 1
    assert door.asked == [] and door.status[0] == "COMPLETED"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (75, ("PREEMPTED", "saved; Slurm may not requeue it here: python -m launcher resume ")),
        (
            137,
            ("FAILED", "broke down: a rank was killed (SIGKILL); Slurm may not requeue it here: python -m launcher "),
        ),
    ],
)
def test_where_requeues_are_forbidden_it_says_how_to_go_on(door, code, status):
    door.started()
    said = "Requested operation is presently disabled for job 12_3"
    door.when_asked(f"echo '{said}' >&2; echo 1 > {door.root}/slurm/scontrol.code")
    done = door(code)
    assert done.returncode == 1 and said in done.stderr
    assert door.status[0] == status[0] and door.status[1].startswith(status[1])


def test_one_that_is_in_the_queue_already_is_fine(tmp_path):
    recorded = RecordedSlurm(tmp_path / "slurm")
    recorded.says("scontrol", err="12_3: Job is pending execution", code=1)
    Slurm(recorded.env, patient=False).requeue("12_3")
    assert recorded.calls == ["scontrol requeue 12_3"]


def test_slurmctld_is_waited_for(door, monkeypatch, capsys):
    door.started()
    for name, value in {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", door.slurm.env["PATH"])
    door.slurm.says("scontrol", err=AWAY, code=1)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            door.slurm.says("scontrol", shown(end="2099-01-01T00:00:00"))

    monkeypatch.setattr(requeue, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic, time=time.time))
    monkeypatch.setattr(sys, "argv", ["requeue", str(door.plans), "--code", "75"])
    assert requeue.main() == 0
    assert pauses == sorted(pauses) and len(pauses) == 6 and door.status[0] == "REQUEUED"
    assert capsys.readouterr().err.count("trying again") == 6


def test_without_scontrol_the_shell_is_asked_to(door):
    door.started()
    empty = door.root / "bin"
    empty.mkdir()
    done = door(75, path=str(empty))
    assert done.returncode == BY_THE_SHELL and door.status == ("REQUEUED", "asked to stop")


def test_a_torn_line_and_events_of_before_are_no_obstacle(door):
    rundir = door.plan.rundir
    rundir.path.mkdir(parents=True)
    append_json_line(rundir.attempts, {"event": "start", "job_id": "12_3", "step": None, "attempt": 1})
    with rundir.attempts.open("a") as file:
        file.write('{"event": "sta')
    found = judge(rundir, "12_3", 137, "broke down: x", RequeueSettings(max_without_progress=1), 0)
    assert found.failed


# Nodes

ON_N2 = {"SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": "n2"}
TEST = "sbatch --test-only --exclude="


def excluded(door) -> list[tuple[str, str]]:
    return [(e["node"], e["reason"]) for e in door.plan.rundir.attempt_events() if e["event"] == "exclude"]


def updates(door) -> list[str]:
    return [call.partition("ExcNodeList=")[2] for call in door.slurm.called("scontrol") if " update " in call]


def not_passed(door) -> None:
    door.started(failed="node n2 did not pass the preflight: oh", kind="NodeFailed", code=76)


def test_a_node_that_did_not_pass_is_excluded_once_slurm_has_requeued_the_job(door):
    not_passed(door)
    done = door(76)
    reason = "broke down: rank 1 on n2: NodeFailed: node n2 did not pass the preflight: oh"
    assert done.returncode == 0 and door.reasons == [reason] and excluded(door) == [("n2", reason)]
    assert f"node n2 is excluded: {reason}" in done.stderr
    assert door.slurm.called("sbatch") == [f"{TEST}n2 {SweepDir(door.root / 'sweep').script('t1')}"]
    asked = [call for call in door.slurm.called("scontrol") if "show" not in call]
    assert asked == ["scontrol requeue 12_3", "scontrol update JobId=12_3 ExcNodeList=n2"]


def test_what_the_user_excludes_already_stays_so_and_what_was_excluded_before(door):
    door.started()
    door.plan.rundir.add_attempt_event(event="exclude", node="n4", reason="oh")
    line = shown(end="2099-01-01T00:00:00")
    door.slurm.says("scontrol", line.replace("NodeList=n1", "NodeList=n1 ExcNodeList=n[7-9],n4"))
    not_passed(door)
    assert door(76).returncode == 0
    assert updates(door) == ["n[7-9],n4,n2"] and door.slurm.called("sbatch")[0].startswith(f"{TEST}n[7-9],n4,n4,n2 ")
    not_passed(door)  # there again: its list of two is full, and says so to Slurm again
    assert door(76).returncode == 0 and updates(door)[1:] == ["n[7-9],n4,n2"] and len(excluded(door)) == 2


def test_a_node_without_which_slurm_would_not_take_the_job_stays(door):
    not_passed(door)
    said = "allocation failure: Requested node configuration is not available"
    door.slurm.says("sbatch", err=said, code=1)
    done = door(76)
    assert done.returncode == 0 and len(door.asked) == 1, "it is tried again all the same"
    assert f"node n2 is not excluded: sbatch: {said}" in done.stderr
    assert (excluded(door), updates(door)) == ([], [])


def test_a_user_at_the_limit_of_their_jobs_has_other_nodes_all_the_same(door):
    not_passed(door)
    door.slurm.says("sbatch", err="AssocMaxSubmitJobLimit (job submit limit, user's size and/or time limits)", code=1)
    assert door(76).returncode == 0 and updates(door) == ["n2"]


def test_a_node_is_excluded_when_a_rank_was_killed_there_twice_in_a_row(door):
    for step, node in ((0, "n1"), (2, "n2"), (4, "n2")):
        door.started(step)
        assert excluded(door) == []
        assert door(137, **ON_N2 | {"SLURMD_NODENAME": node}).returncode == 0
    why = "broke down: a rank was killed (SIGKILL)"
    assert excluded(door) == [("n2", f"the run broke down there twice in a row: {why}")] and updates(door) == ["n2"]


def test_of_several_nodes_srun_has_named_the_one_where_a_rank_was_killed(door):
    sweep = SweepDir(door.root / "sweep")
    sweep.add_event("intent", "t1", runs=["x"] * 4, slurm_conf=None)
    sweep.job_logs.mkdir()
    old = "srun: error: n1: task 0: Killed\nslurmstepd: error: *** JOB 15 ON n1 CANCELLED AT x DUE TO JOB REQUEUE ***\n"
    new = "srun: error: n2: task 1: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=15.0\n"
    for text in (old + new, old + new + new, old + new + old):
        (sweep.job_logs / "12_3_0_log.err").write_text(text)
        door.started()
        assert door(137, SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n1").returncode == 0
    events = [event for event in door.plan.rundir.attempt_events() if event["event"] == "requeue"]
    assert [event["node"] for event in events] == ["n2", "n2", None] and len(excluded(door)) == 1


@pytest.mark.parametrize("code", [75, 76])
def test_no_node_is_excluded_where_a_job_was_stopped(door, code):
    for _ in range(2):
        door.started()
        assert door(code, **ON_N2).returncode == 0
    assert excluded(door) == [] and door.slurm.called("sbatch") == []


@pytest.mark.parametrize("code", [1, 2, 3])
def test_no_node_is_excluded_for_what_its_user_must_mend(door, code):
    door.started(failed="no such file", code=code)
    assert door(76, **ON_N2).returncode == 1 and excluded(door) == []


def test_none_is_excluded_where_none_may_be_and_after_the_last_the_run_goes_on(door):
    door.limit(max_excluded=0)
    not_passed(door)
    assert door(76).returncode == 0 and excluded(door) == [] and len(door.asked) == 1


def test_where_slurm_does_not_take_it_the_job_is_requeued_and_that_is_said(door):
    not_passed(door)
    last = f"tail -n 1 '{door.root}/slurm/calls'"
    fail = f"echo 'Invalid node name specified' >&2; echo 1 > {door.root}/slurm/scontrol.code"
    door.slurm.does("scontrol", f'case "$({last})" in "scontrol update "*) {fail};; esac')
    done = door(76)
    assert done.returncode == 0 and "job 12_3 may run on n2 again: scontrol: Invalid node name" in done.stderr


def test_without_scontrol_no_node_is_excluded(door):
    not_passed(door)
    (door.root / "bin").mkdir()
    assert door(76, path=str(door.root / "bin")).returncode == BY_THE_SHELL and excluded(door) == []
