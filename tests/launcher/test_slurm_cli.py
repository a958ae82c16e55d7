"""Slurm's commands: what is asked, what is read from the answers, and what their errors become."""

from __future__ import annotations

from datetime import datetime

import pytest

from launcher import slurm_cli
from launcher.runtime.errors import UserError
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError, SubmitLimit, missing_commands
from launcher.slurm_text import Forecast, elements
from tests.launcher.recorded_slurm import AWAY, NO_ACCOUNTING, RecordedSlurm


@pytest.fixture
def recorded(tmp_path):
    return RecordedSlurm(tmp_path / "slurm")


@pytest.fixture
def slurm(recorded):
    return Slurm(recorded.env, patient=False)


def test_sbatch_answers_with_an_id(slurm, recorded, tmp_path):
    recorded.says("sbatch", "sbatch: some words of a site\n12;disposable\n")
    assert slurm.sbatch(tmp_path / "job.sh", ["--hold"]) == "12"
    assert recorded.calls == [f"sbatch --parsable --hold {tmp_path}/job.sh"]


@pytest.mark.parametrize("answer", ["", "\n", "Submitted batch job 12\n", "twelve\n"])
def test_another_answer_of_sbatch_is_an_error(slurm, recorded, tmp_path, answer):
    recorded.says("sbatch", answer)
    with pytest.raises(SlurmError, match="instead of a job id"):
        slurm.sbatch(tmp_path / "job.sh")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("sbatch: error: Unable to contact slurm controller (connect failure)", SlurmAway),
        ("sbatch: error: Socket timed out on send/recv operation", SlurmAway),
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Job violates accounting/QOS policy"
         " (job submit limit, user's size and/or time limits)", SubmitLimit),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", SubmitLimit),
        ("sbatch: error: invalid partition specified: nope", SlurmError),
        ("", SlurmError),
    ],
)  # fmt: skip
def test_what_sbatch_refuses(slurm, recorded, tmp_path, said, kind):
    recorded.says("sbatch", err=said, code=1)
    with pytest.raises(SlurmError) as caught:
        slurm.sbatch(tmp_path / "job.sh")
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_a_controller_that_is_away_is_asked_again_with_growing_pauses(recorded, monkeypatch):
    pauses = []
    monkeypatch.setattr(slurm_cli.time, "sleep", pauses.append)
    recorded.says("squeue", err=AWAY, code=1)
    with pytest.raises(SlurmAway, match="Unable to contact"):
        Slurm(recorded.env).queue()
    assert [s for s in pauses if s >= 1] == [2, 5] and len(recorded.calls) == 3  # subprocess sleeps, too


def test_no_slurm_at_all(tmp_path):
    env = {"PATH": str(tmp_path)}
    with pytest.raises(UserError, match="no Slurm on PATH"):
        Slurm(env).queue()
    assert missing_commands(env) == ["sbatch", "squeue", "scontrol", "scancel", "srun"]


def test_a_cluster_that_is_gone_is_told_at_once(recorded, tmp_path):
    with pytest.raises(SlurmError, match=r"gone\.conf: there is no such file"):
        Slurm(recorded.env, str(tmp_path / "gone.conf")).queue()
    assert recorded.calls == []


def test_an_unconfigured_client_is_told_what_to_set(slurm, recorded):
    recorded.says("squeue", err="squeue: fatal: Could not establish a configuration source\n", code=1)
    with pytest.raises(UserError, match="set SLURM_CONF"):
        slurm.queue()


def test_the_queue(slurm, recorded):
    recorded.says("squeue", "12_3|PENDING|Resources|2026-11-22T03|0:00||/a|b.sh\n7|RUNNING|None|N/A|1:02|n[1-2]|/c\n")
    jobs = slurm.queue()
    assert (jobs["12_3"].reason, jobs["12_3"].command, jobs["7"].nodes) == ("Resources", "/a|b.sh", "n[1-2]")


def test_history_asks_once_for_each_array(slurm, recorded):
    recorded.history(("12_0", "COMPLETED"), ("12_[1-2%256]", "CANCELLED by 0"), ("7", "OUT_OF_MEMORY"), ("x", ""))
    found = slurm.history(["12_0", "12_1", "7"])
    assert found == {"12_0": "COMPLETED", "12_1": "CANCELLED", "12_2": "CANCELLED", "7": "OUT_OF_MEMORY"}
    assert recorded.calls[0].endswith("--jobs=12,7")
    assert slurm.history([]) == {} and len(recorded.calls) == 1


def test_history_without_accounting_is_empty_and_its_other_errors_are_told(slurm, recorded):
    recorded.says("sacct", err=NO_ACCOUNTING, code=1)
    assert slurm.history(["1"]) == {}
    recorded.says("sacct", err="sacct: error: Invalid user id", code=1)
    with pytest.raises(SlurmError, match="Invalid user"):
        slurm.history(["1"])


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("12", ["12"]), ("12_3", ["12_3"]), ("12_[3]", ["12_3"]), ("12_[0-2]", ["12_0", "12_1", "12_2"]),
        ("12_[0,4-5%2]", ["12_0", "12_4", "12_5"]), ("12_[0-6:3]", ["12_0", "12_3", "12_6"]), ("12_[…]", ["12_[…]"]),
        ("12_[0-2,...]", ["12_[0-2,...]"]), ("12+0", ["12+0"]),
    ],
)  # fmt: skip
def test_elements_of_an_array(name, jobs):
    assert elements(name) == jobs


def test_settings_partitions_and_jobs(slurm, recorded):
    recorded.says("scontrol", "Configuration data\nKillWait                = 5 sec\nAuthInfo = a=b,c=5\nnothing\n")
    assert slurm.config() == {"KillWait": "5 sec", "AuthInfo": "a=b,c=5"}
    recorded.says("scontrol", "PartitionName=low Default=YES GraceTime=20 TRES=cpu=16,mem=256G\n\nno partition\n")
    assert slurm.partitions() == {
        "low": {"PartitionName": "low", "Default": "YES", "GraceTime": "20", "TRES": "cpu=16,mem=256G"}
    }
    recorded.says("scontrol", "JobId=12 JobState=PENDING Reason=Resources ExitCode=0:0\n")
    assert slurm.show_job("12")["Reason"] == "Resources"


def test_limits_and_version(slurm, recorded):
    recorded.says("sacctmgr", "lab||500\nlab|low|20\nother||\ngarbage\n")
    assert slurm.submit_limits() == [("lab", "", 500), ("lab", "low", 20)]
    recorded.says("sbatch", "slurm-wlm 22.05.8\n")
    assert slurm.version() == "22.05.8"


def test_cancel_is_one_call_and_none_for_nothing(slurm, recorded):
    slurm.cancel([])
    slurm.cancel(["12_[0-2]", "7"])
    assert recorded.calls == ["scancel --quiet 12_[0-2] 7"]


def test_the_environment_of_a_job_is_not_passed_on(recorded, tmp_path):
    seen = tmp_path / "seen"
    recorded.does("squeue", f"env | grep -E '^(SLURM|SBATCH)' | sort > {seen}")
    conf = tmp_path / "slurm.conf"
    conf.touch()
    Slurm(recorded.env | {"SLURM_JOB_ID": "3", "SBATCH_PARTITION": "x", "SLURM_CONF": str(conf)}).queue()
    assert seen.read_text().split() == ["SLURM_BITSTR_LEN=0", f"SLURM_CONF={conf}"]


def test_what_a_test_only_foretells(slurm, recorded, tmp_path):
    line = "sbatch: Job 8 to start at 2026-11-28T15:21:52 using 4 processors on nodes n[1-2] in partition high\n"
    recorded.says("sbatch", err=line)
    assert slurm.forecast(tmp_path / "job.sh", ["--nodes=1"]) == Forecast(datetime(2026, 11, 28, 15, 21, 52), False)
    assert recorded.calls == [f"sbatch --test-only --nodes=1 {tmp_path}/job.sh"]
    recorded.says("sbatch", err=f"{line}sbatch:   Preempts: 1,2\n")
    assert slurm.forecast(tmp_path / "job.sh").preempts
    for other in ("", line.replace("2026", "soon"), "sbatch: accepted\n"):
        recorded.says("sbatch", err=other)
        assert slurm.forecast(tmp_path / "job.sh") is None
    recorded.says("sbatch", err="allocation failure: Node count specification invalid\n", code=1)
    with pytest.raises(SlurmError, match="Node count specification invalid"):
        slurm.forecast(tmp_path / "job.sh")
