"""What a batch script does once srun has ended: real bash, and small programs for all that it calls."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.launcher.recorded_slurm import RecordedSlurm
from tests.launcher.submission.test_batch import text_of

RUNNING = "JobId=15 JobName=x JobState=RUNNING Reason=None Requeue=1 Restarts=0 BatchFlag=1\n"


class Script:
    """A batch script whose srun, Python, scontrol and sleep do as they are told and note their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slurm = RecordedSlurm(folder / "slurm")
        self.says("scontrol", RUNNING)
        for name in ("python", "sleep"):
            program = folder / "slurm" / "bin" / name
            program.write_text((folder / "slurm" / "bin" / "srun").read_text())
            program.chmod(0o755)
            self.says(name)
            self.slurm.does(name, "")

    def says(self, command: str, out: str = "", code: int = 0) -> None:
        self.slurm.says(command, out, code=code)

    def run(self, *setup: str, array: bool = True) -> tuple[int, list[str]]:
        """Exit code, and what was called after srun."""
        site = {"python": str(self.folder / "slurm" / "bin" / "python"), "setup": list(setup)}
        (self.folder / "sweep" / "submissions").mkdir(parents=True, exist_ok=True)
        script = self.folder / "script.sh"
        script.write_text(text_of(self.folder, site=site, count=4 if array else 1))
        job = {"SLURM_JOB_ID": "15"} | ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"} if array else {})
        done = subprocess.run(["bash", str(script)], env=self.slurm.env | job, timeout=60, check=False)
        calls = self.slurm.calls
        assert calls[0].startswith("srun ")
        return done.returncode, [call.replace(str(self.folder), "") for call in calls[1:]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


ASKED = "python -uP -m launcher.requeue /sweep/submissions/TOKEN.jsonl --submission TOKEN --warned 90 --code {}"
TERM_THE_SHELL = 'kill -TERM "$(ps -o ppid= -p $PPID)"'
"""By what a program of ``RecordedSlurm`` runs: its own parent is that program."""


def test_a_job_that_is_done_asks_nobody(script):
    assert script.run() == (0, [])


@pytest.mark.parametrize("code", [1, 70, 75, 137])
def test_the_policy_is_asked_and_sruns_code_is_the_jobs(script, code):
    script.says("srun", code=code)
    script.says("python", code=1)
    assert script.run() == (code, [ASKED.format(code)])


def test_what_setup_says_of_errors_keeps_nothing_from_being_asked(script):
    script.says("srun", code=75)
    script.says("python", code=1)
    assert script.run("set -euo pipefail", "trap 'echo mine' EXIT") == (75, [ASKED.format(75)])


def test_after_a_requeue_it_waits_for_slurm_to_end_it(script):
    script.says("srun", code=75)
    assert script.run() == (75, [ASKED.format(75), "sleep 60"])


def test_that_wait_is_over_when_slurm_ends_the_job(script):
    script.says("srun", code=75)
    script.slurm.does("python", TERM_THE_SHELL)
    assert script.run() == (75, [ASKED.format(75)])


@pytest.mark.parametrize("code", [75, 137, 143])
def test_a_job_that_slurm_ends_is_never_requeued(script, code):
    script.slurm.does("srun", TERM_THE_SHELL)
    script.says("srun", code=code)
    assert script.run() == (code, [])


def test_a_run_that_is_given_up_ends_as_a_failed_training(script):
    script.says("srun", code=137)
    script.says("python", code=3)
    assert script.run() == (3, [ASKED.format(137)])


@pytest.mark.parametrize(("array", "job"), [(True, "12_3"), (False, "15")])
def test_where_python_has_no_scontrol_the_shell_asks(script, array, job):
    script.says("srun", code=75)
    script.says("python", code=79)
    code, calls = script.run(array=array)
    show, requeue = f"scontrol show job --oneliner {job}", f"scontrol requeue {job}"
    assert (code, calls[1:]) == (75, [show, requeue, "sleep 60"])


@pytest.mark.parametrize("now", [("RUNNING", "COMPLETING"), ("Restarts=0", "Restarts=1")], ids=["cancelled", "again"])
def test_the_shell_brings_no_cancelled_job_back_and_ends_no_later_start(script, now):
    script.says("srun", code=75)
    script.says("python", code=79)
    script.says("scontrol", RUNNING.replace(*now))
    code, calls = script.run()
    assert (code, calls[1:]) == (75, ["scontrol show job --oneliner 12_3"])


def test_the_shell_tries_a_few_times_and_gives_up(script):
    script.says("srun", code=75)
    script.says("python", code=79)
    script.says("scontrol", code=1)
    code, calls = script.run()
    assert (code, calls[1::2]) == (75, ["scontrol show job --oneliner 12_3"] * 6)
    assert calls[2::2] == [f"sleep {seconds}" for seconds in (5, 15, 60, 180, 600, 0)]


def test_once_slurm_ends_the_job_the_shell_asks_no_more(script):
    script.says("srun", code=75)
    script.says("python", code=79)
    script.says("scontrol", code=1)
    script.slurm.does("sleep", TERM_THE_SHELL)
    code, calls = script.run()
    assert (code, calls[1:]) == (75, ["scontrol show job --oneliner 12_3", "sleep 5"])
