"""Where a job stands in its chain, whether a successor is needed, and how a job hands its run on."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import slurm_cli, successor
from launcher.chain import NOT_NEEDED, Chain
from launcher.requeue import BY_THE_SHELL
from launcher.runtime.files import write_json
from launcher.runtime.pack.queue import Queue
from launcher.runtime.progress import began_since_requeue, starts, without_progress
from launcher.runtime.sweepdir import SweepDir
from tests.conftest import REPOSITORY
from tests.launcher.jobs import job as job_of
from tests.launcher.recorded_slurm import AWAY, RecordedSlurm

LINKS = ("12", "13", "14")


class ChainOfJobs:
    """Run 7, element 1 of the arrays 12, 13 and 14, of which each goes on where the one before ends."""

    def __init__(self, root: Path) -> None:
        self.root, self.slurm = root, RecordedSlurm(root / "slurm")
        self.plan = job_of(root, 7).plan
        self.sweep, self.rundir = SweepDir(root / "sweep"), self.plan.rundir
        self.rundir.path.mkdir(parents=True)
        self.plans = self.sweep.plans("t12")
        self.limit()
        runs = ["other", self.plan.run_id]
        for number in LINKS:
            follows = {} if number == "12" else {"follows": "t12"}
            self.sweep.add_event("intent", f"t{number}", runs=runs, slurm_conf=None, **follows)
            self.sweep.add_event("submitted", f"t{number}", job_id=number)
        self.says()

    def limit(self, **limits: Any) -> None:
        self.plan.execution["requeue"] = limits
        self.plans.parent.mkdir(parents=True, exist_ok=True)
        self.plans.write_text("{}\n" + json.dumps(self.plan.to_json()) + "\n")

    def says(self, end: str = "2099-01-01T00:00:00", **states: str) -> None:
        """Slurm's states of the elements, ``j12`` and so on; it has forgotten those that are not named."""
        cases = "".join(
            f'*"show job --oneliner {name[1:]}_1") echo "JobId=1 JobState={state} Restarts=0 EndTime={end}"; exit 0;;'
            for name, state in states.items()
        )
        forgotten = '*"show job"*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;;'
        self.slurm.does("scontrol", f"case \"$(tail -n 1 '{self.root}/slurm/calls')\" in {cases}{forgotten} esac")
        program = self.root / "slurm" / "bin" / "scontrol"
        if "|| exit" not in program.read_text():
            program.write_text(program.read_text().replace('.does"\n', '.does" || exit 1\n'))

    def started(self, number: str, step: int = 0, code: int | None = None, restarts: int = 0) -> None:
        """An attempt of one of the jobs; with ``code`` it has said how it ended."""
        attempt = 1 + sum(event["event"] == "start" for event in self.rundir.attempt_events())
        said = {"attempt": attempt, "job_id": f"{number}_1", "incarnation": f"i{attempt}", "restarts": restarts}
        self.rundir.add_attempt_event(event="start", step=step, code=None, **said)
        self.rundir.write_status(state="RUNNING", step=step)
        if code is not None:
            self.rundir.add_attempt_event(event="end", step=step, code=code, **said)
            self.rundir.write_status(state="PREEMPTED" if code in (75, 76) else "FAILED", step=step)

    def failed(self, code: int) -> None:
        """Why the newest attempt failed, by its rank."""
        (*_, last) = (e for e in self.rundir.attempt_events() if e["event"] == "start")
        file = self.rundir.failure(last["incarnation"], 0)
        file.parent.mkdir(parents=True)
        said = {"rank": 0, "host": "n1", "kind": "E", "message": "oh", "time": "1", "after_another": False}
        write_json(file, said | {"code": code})

    def door(
        self, module: str, number: str, *options: str, path: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        env = {"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": "1"}
        env = self.slurm.env | env | {"PYTHONPATH": str(REPOSITORY)} | ({"PATH": path} if path else {})
        command = [sys.executable, "-uP", "-m", module, str(self.plans), "--submission", f"t{number}", *options]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def begins(self, number: str, *options: str) -> tuple[int, str]:
        """What the door says to a successor."""
        done = self.door("launcher.successor", number, *options)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    def ends(self, number: str, code: int, *options: str, path: str | None = None) -> int:
        """What the door says to a job whose ranks are gone."""
        done = self.door("launcher.requeue", number, "--code", str(code), "--chained", *options, path=path)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    @property
    def state(self) -> tuple[str, str]:
        status = self.rundir.read_status()
        return status["state"], status.get("reason", "")

    @property
    def handed(self) -> list[tuple[str, str, str | None]]:
        events = (event for event in self.rundir.attempt_events() if event["event"] == "requeue")
        return [(event["job_id"], event["reason"], event.get("next")) for event in events]

    @property
    def asked(self) -> list[str]:
        """What was asked of Slurm, questions left out."""
        return [call for call in self.slurm.calls if " show " not in call and not call.startswith("sacct")]


@pytest.fixture
def chain(tmp_path: Path) -> ChainOfJobs:
    return ChainOfJobs(tmp_path)


def test_where_a_job_stands(chain):
    def of(number: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = Chain.of(chain.sweep, f"t{number}", f"{number}_1", 1)
        return found.before, found.after

    assert of("12") == ((), ("13_1", "14_1"))
    assert of("13") == (("12_1",), ("14_1",))
    assert of("14") == (("12_1", "13_1"), ())
    assert Chain.of(chain.sweep, "gone", "12_1", 1) == Chain("12_1") == Chain.of(chain.sweep, None, "12_1", 1)
    chain.sweep.add_event("withdrawn", "t13")
    assert of("14") == (("12_1",), ())


# How a job that has ended says so to the next one.


def test_a_stopped_job_hands_its_run_to_the_next_one_which_waits_for_it_alone(chain):
    chain.started("12", 5, 75)
    chain.says(j12="RUNNING", j13="PENDING")
    assert chain.ends("12", 75) == 1, "the job ends as it is"
    assert chain.asked == ["scontrol update jobid=13_1 dependency=afterany:12_1"]
    assert chain.handed == [("12_1", "asked to stop", "13_1")]
    assert chain.state == ("REQUEUED", "asked to stop; goes on in job 13_1")
    chain.says(j12="FAILED", j13="RUNNING")
    assert chain.begins("13") == (0, "") and len(chain.handed) == 1


def test_a_time_limit_is_counted_across_the_chain(chain):
    chain.limit(max_timeouts=1)
    soon = (datetime.now() + timedelta(seconds=30)).isoformat(timespec="seconds")
    chain.started("12", 5, 75)
    chain.says(soon, j12="RUNNING", j13="PENDING")
    assert chain.ends("12", 75) == 1 and chain.handed == [("12_1", "out of time", "13_1")]
    chain.started("13", 9, 75)
    chain.says(soon, j13="RUNNING", j14="PENDING")
    assert chain.ends("13", 75) == 1
    assert chain.state[0] == "PREEMPTED" and "max_num_timeout=1 requeues for that are used up" in chain.state[1]
    assert chain.asked[-1] == "scancel --quiet 14_1"


def test_one_that_was_taken_out_of_the_queue_is_passed_over_and_the_last_asks_for_a_requeue(chain):
    chain.started("12", 5, 75)
    chain.says(j12="RUNNING", j13="CANCELLED", j14="PENDING")
    assert chain.ends("12", 75) == 1 and chain.handed[-1][2] == "14_1"
    chain.started("14", 9, 75)
    chain.says(j14="RUNNING")
    assert chain.ends("14", 75) == 0 and chain.asked[-1] == "scontrol requeue 14_1"
    assert chain.handed[-1] == ("14_1", "asked to stop", None)


@pytest.mark.parametrize("code", [0, 1, 3])
def test_where_nobody_needs_to_go_on_the_others_leave_the_queue(chain, code):
    chain.started("12")
    assert chain.ends("12", code) == 1
    assert chain.asked == ["scancel --quiet 13_1 14_1"] and chain.handed == []


def test_what_slurm_itself_has_ended_lets_its_own_successor_go_on(chain):
    chain.started("12", 5, 75)
    assert chain.ends("12", 75, "--ended") == 0
    assert chain.asked == ["scontrol update jobid=13_1 dependency=afterany:12_1"] and chain.handed == []


def test_without_scontrol_the_first_successor_is_believed_to_wait(chain):
    chain.started("12", 5, 75)
    (chain.root / "bin").mkdir()
    assert chain.ends("12", 75, path=str(chain.root / "bin")) == 1 and chain.handed[-1][2] == "13_1"
    chain.started("14", 5, 75)
    assert chain.ends("14", 75, path=str(chain.root / "bin")) == BY_THE_SHELL


# Whether a successor begins.


@pytest.mark.parametrize(
    ("slurms", "code", "reason"),
    [
        ("PREEMPTED", None, "preempted"),
        ("PREEMPTED", 75, "preempted"),
        ("TIMEOUT", None, "out of time"),
        ("NODE_FAIL", None, "broke down: its node failed"),
        ("FAILED", 75, "asked to stop"),
        ("FAILED", None, "broke down: its job ended without a word"),
        (None, 76, "asked to stop"),  # Slurm has forgotten it
        (None, None, "broke down: its job ended without a word"),
    ],
)
def test_a_run_whose_job_was_ended_without_a_word_goes_on(chain, slurms, code, reason):
    chain.started("12", 5, code)
    chain.says(**({"j12": slurms} if slurms else {}))
    assert chain.begins("13") == (0, "")
    assert chain.handed == [("12_1", reason, "13_1")]
    assert chain.begins("13") == (0, "") and len(chain.handed) == 1, "it may have been requeued itself"


def test_one_that_never_began_goes_on_too(chain):
    chain.says(j12="PREEMPTED")
    assert chain.begins("13")[0] == 0 and chain.handed == [("12_1", "preempted", "13_1")]


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED"])
def test_a_run_that_is_done_needs_no_successor(chain, state):
    chain.started("12")
    chain.rundir.write_status(state=state)
    code, said = chain.begins("13")
    assert (code, said) == (NOT_NEEDED, f"job 13_1 has nothing to do: its run is {state}\n")
    assert chain.asked == ["scancel --quiet 14_1"] and chain.handed == [] and chain.state[0] == state


def test_scancel_of_the_job_before_ends_the_chain(chain):
    chain.started("12", 5, 75)
    chain.says(j12="CANCELLED")
    assert chain.begins("13")[0] == NOT_NEEDED and chain.state[0] == "CANCELLED"
    assert chain.begins("14")[0] == NOT_NEEDED and chain.handed == []


def test_a_scancel_that_crosses_the_handing_on_wins(chain):
    chain.started("12", 5, 75)
    chain.says(j12="RUNNING", j13="PENDING")
    assert chain.ends("12", 75) == 1
    chain.says(j12="CANCELLED")
    assert chain.begins("13")[0] == NOT_NEEDED and chain.state[0] == "CANCELLED"


@pytest.mark.parametrize(("job", "needed"), [("12_1", False), ("14_1", False), ("12_0", True)])
def test_what_launcher_cancel_wrote_down_ends_the_chain(chain, job, needed):
    chain.started("12", 5, 75)
    chain.sweep.add_event("cancelled", f"t{job[:2]}", jobs=[job])
    assert (chain.begins("13")[0] == 0) == needed and (chain.state[0] == "CANCELLED") != needed


def test_one_whose_run_another_job_trains_leaves_it_alone(chain):
    chain.started("12", 5)
    chain.says(j12="RUNNING", j13="CANCELLED")
    code, said = chain.begins("14")
    assert code == NOT_NEEDED and "job 12_1 is there for its run" in said
    assert chain.asked == [] and chain.state[0] == "RUNNING"


@pytest.mark.parametrize("event", ["submitted", "replaced"])
def test_one_whose_run_was_submitted_anew_leaves_it_alone(chain, event):
    chain.started("12", 5, 75)
    if event == "replaced":
        chain.sweep.add_event("replaced", "", runs=[chain.plan.run_id])
    else:
        chain.sweep.add_event("intent", "t20", runs=[chain.plan.run_id], slurm_conf=None)
        chain.sweep.add_event("submitted", "t20", job_id="20")
    code, said = chain.begins("13")
    assert code == NOT_NEEDED and "submitted anew" in said and chain.handed == []


@pytest.mark.parametrize("code", [1, 3])
def test_what_failed_for_good_is_not_tried_again(chain, code):
    chain.started("12", 5, code)
    chain.failed(code)
    chain.says(j12="FAILED")
    assert chain.begins("13")[0] == NOT_NEEDED and chain.state[0] == "FAILED" and chain.handed == []


def test_one_that_was_refused_before_it_began_is_not_tried_again(chain):
    chain.sweep.refusal("t12", "12_1", "0").write_text("1\n")
    assert chain.begins("13")[0] == NOT_NEEDED


def test_attempts_without_progress_are_counted_across_the_chain(chain):
    chain.limit(max_without_progress=2)
    chain.started("12", 0)
    chain.says(j12="NODE_FAIL")
    assert chain.begins("13")[0] == 0
    chain.started("13", 0)
    chain.says(j12="NODE_FAIL", j13="NODE_FAIL")
    code, said = chain.begins("14")
    assert code == NOT_NEEDED and "2 attempts in a row made no progress (last: its node failed)" in said
    assert chain.state[0] == "FAILED"


def test_a_controller_that_does_not_answer_leaves_our_files_to_decide(chain, monkeypatch):
    chain.started("12", 5, 75)
    chain.slurm.does("scontrol", "")
    chain.slurm.says("scontrol", err=AWAY, code=1)
    chain.slurm.says("sacct", err=AWAY, code=1)
    monkeypatch.setattr(slurm_cli, "_PAUSES_S", (0.0,))
    job = {"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "13", "SLURM_ARRAY_TASK_ID": "1"}
    for name, value in (job | {"PATH": chain.slurm.env["PATH"]}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["successor", str(chain.plans), "--submission", "t13"])
    assert successor.main() == 0 and len(chain.slurm.calls) == 4, "each twice"
    assert chain.handed == [("12_1", "asked to stop", "13_1")]


def test_a_successor_of_workers_is_one_more_worker_where_something_waits(chain):
    queue = Queue(chain.sweep.queue("t12"))
    queue.fill(["000000", "000001"])
    assert chain.begins("13", "--packed") == (0, "")
    queue.end("000000", None)
    queue.claim("000001", "12_0")
    assert chain.begins("13", "--packed")[0] == 0, "whose worker is gone"
    with queue.joined("12_0"):
        queue.claim("000001", "12_0")
        code, said = chain.begins("13", "--packed")
        assert code == NOT_NEEDED and "none of its runs waits" in said and chain.asked == []
    queue.fill(["000002"])
    chain.says(j12="CANCELLED")
    assert chain.begins("13", "--packed")[0] == NOT_NEEDED


# The starts of a chain are those of one job.

_JOBS = st.lists(st.tuples(st.sampled_from(["start", "requeue"]), st.integers(0, 3)), max_size=12)


@given(_JOBS, st.integers(1, 3))
def test_a_chain_counts_as_one_job_that_was_requeued_as_often(story, every):
    """Whatever one job's events are: the same told of jobs that follow each other say the same."""
    one: list[dict[str, Any]] = []
    many: list[dict[str, Any]] = []
    at = 0
    for index, (kind, step) in enumerate(story):
        event: dict[str, Any] = {"event": kind} | ({"step": step} if kind == "start" else {"reason": "r"})
        hands_on = kind == "requeue" and index % every == 0
        one.append(event | {"job_id": "1"})
        many.append(event | {"job_id": str(at)} | ({"next": str(at + 1)} if hands_on else {}))
        at += hands_on
    assert starts(one, "1") == starts(many, str(at))
    assert [without_progress(one, "1", step) for step in range(4)] == [
        without_progress(many, str(at), step) for step in range(4)
    ]
    assert began_since_requeue(one, "1", 0) == began_since_requeue(many, str(at), 0)
