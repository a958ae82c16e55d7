"""Our readers of Slurm's output over what each version prints: real commands on PATH, with real exit codes."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from launcher.requeue import classify, runs
from launcher.runtime.errors import UserError
from launcher.slurm_cli import RequeueForbidden, Slurm, SlurmAway, SlurmError, SubmitLimit
from tests.launcher.recorded_slurm import RecordedSlurm

FOLDER = Path(__file__).parent / "slurm_outputs"
VERSIONS = sorted((path.name for path in FOLDER.iterdir() if path.is_dir()), key=lambda v: [*map(int, v.split("."))])
RECORDED = "22.05.8"
STATES = {
    "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "NODE_FAIL", "LAUNCH_FAILED", "COMPLETING",
}  # fmt: skip


def outputs(name: str) -> list[str]:
    """Versions of which there is such a call."""
    return [version for version in VERSIONS if (FOLDER / version / f"{name}.json").exists()]


def of_each(name: str) -> Any:
    """Run a test for each version that has the call ``name``."""
    return pytest.mark.parametrize(("version", "name"), [(version, name) for version in outputs(name)])


Saying = Callable[[str, str], dict[str, Any]]


@pytest.fixture
def recorded(tmp_path):
    return RecordedSlurm(tmp_path / "slurm")


@pytest.fixture
def says(recorded) -> Saying:
    """``says(version, name)``: from now on the command answers as it did in that call, which is returned."""

    def says(version: str, name: str) -> dict[str, Any]:
        call = json.loads((FOLDER / version / f"{name}.json").read_text())
        recorded.says(call["words"][0], call["out"], call["err"], call["code"])
        return call

    return says


@pytest.fixture
def slurm(recorded):
    return Slurm(recorded.env, patient=False)


def test_every_output_tells_where_it_is_from():
    for file in FOLDER.glob("*/*.json"):
        call = json.loads(file.read_text())
        assert call["from"].startswith("recorded on " if file.parent.name == RECORDED else "made, after "), file
    assert {version.rpartition(".")[0] for version in VERSIONS} >= {
        "20.11", "21.08", "22.05", "23.02", "23.11", "24.05", "24.11", "25.05", "25.11",
    }  # fmt: skip


@of_each("version")
def test_the_version(slurm, says, version, name):
    says(version, name)
    assert slurm.version() == version


@of_each("submitted")
def test_the_id_of_a_job_that_was_submitted(slurm, says, tmp_path, version, name):
    call = says(version, name)
    assert slurm.sbatch(tmp_path / "job.sh") == call["out"].strip().partition(";")[0]


@of_each("queue")
def test_the_queue(slurm, says, recorded, version, name):
    call = says(version, name)
    jobs = slurm.queue()
    assert recorded.called("squeue") == [" ".join(call["words"])], "it was recorded with other words"
    assert len(jobs) == len(call["out"].splitlines()) and {job.state for job in jobs.values()} <= STATES
    assert all(re.fullmatch(r"\d+(_\d+)?", job_id) for job_id in jobs)
    assert all(job.command.startswith("/home/user/") and job.command.endswith(".sh") for job in jobs.values())
    waiting = [job for job in jobs.values() if job.state == "PENDING"]
    assert waiting and all(job.reason for job in waiting)
    assert all(job.nodes for job in jobs.values() if job.state == "RUNNING")


@of_each("job_preempted")
def test_a_job_that_is_being_preempted(slurm, says, version, name):
    says(version, name)
    shown = slurm.show_job("4711")
    assert runs(shown, 2) and not runs(shown, 1)
    assert classify(shown, 75, "", datetime(2026, 11, 28, 15, 19, 30), 120.0, 2) == "preempted"


@of_each("job_running")
def test_a_job_that_runs(slurm, says, version, name):
    says(version, name)
    shown = slurm.show_job("11")
    assert runs(shown, 0) and classify(shown, 75, "", datetime(2020, 1, 1), 120.0) == "asked to stop"
    assert datetime.fromisoformat(shown["StartTime"]) < datetime.fromisoformat(shown["EndTime"])


@of_each("job_pending")
def test_a_job_that_waits(slurm, says, version, name):
    says(version, name)
    shown = slurm.show_job("4711")
    assert shown["JobState"] == "PENDING" and not runs(shown, 0)
    assert classify(shown, 75, "", datetime(2026, 11, 28), 120.0) is None


@of_each("job_finished")
def test_a_job_that_is_over(slurm, says, version, name):
    says(version, name)
    assert (slurm.show_job("15")["JobState"], slurm.show_job("15")["ExitCode"]) == ("COMPLETED", "0:0")


@of_each("job_element")
def test_an_element_of_an_array(slurm, says, version, name):
    says(version, name)
    shown = slurm.show_job("13_0")
    assert (shown["ArrayJobId"], shown["ArrayTaskId"]) == (shown["ArrayJobId"], "0") and runs(shown, 0)


@of_each("history")
def test_history(slurm, says, version, name):
    call = says(version, name)
    wanted = call["words"][-1].partition("=")[2].split(",")
    found = slurm.history(wanted)
    assert {job.partition("_")[0] for job in found} == set(wanted) and set(found.values()) <= STATES
    array = wanted[1] if version != RECORDED else next(j for j in wanted if f"{j}_0" in found)
    assert f"{array}_2" in found and f"{array}_[" not in "".join(found)


@of_each("submit_lines")
def test_a_submission_that_was_cut_off_is_found_in_the_past_or_left_to_its_mark(recorded, slurm, says, version, name):
    recorded.says("squeue", "")
    call = says(version, name)
    script = "a1b2.sh" if version != RECORDED else call["out"].splitlines()[0].rpartition("/")[2]
    found = slurm.submitted_as(Path("/elsewhere") / script)
    assert found == (None if call["code"] else call["out"].partition("|")[0])


@of_each("test_only")
def test_what_test_only_says(slurm, says, tmp_path, version, name):
    says(version, name)
    said = slurm.test(tmp_path / "job.sh")
    assert re.search(r"Job \d+ to start at \S+ using \d processors on nodes \S+ in partition low$", said)
    assert "sbatch: " not in said and "\n" not in said


@of_each("config")
def test_settings(slurm, says, version, name):
    says(version, name)
    config = slurm.config()
    assert (config["SLURM_VERSION"], config["JobRequeue"]) == (version, "1")
    assert "KillWait" in config and "preempt_send_user_signal" in config["SlurmctldParameters"]


@of_each("partitions")
def test_partitions(slurm, says, version, name):
    says(version, name)
    low = slurm.partitions()["low"]
    assert low["PreemptMode"] == "REQUEUE" and low["State"] == "UP" and low["GraceTime"].isdigit()


@of_each("limits")
def test_limits_of_submitting(slurm, says, version, name):
    says(version, name)
    found = slurm.submit_limits()
    assert found and all(limit > 0 for _, _, limit in found)


REFUSED: dict[str, tuple[type[UserError], str]] = {
    "no_partition": (SlurmError, "Invalid partition name"),
    "no_account": (SlurmError, "Invalid account or account/partition combination"),
    "no_qos": (SlurmError, "Invalid qos"),
    "too_many_nodes": (SlurmError, "More processors requested than permitted"),
    "no_such_feature": (SlurmError, "Invalid feature"),
    "too_long": (SlurmError, "Invalid job array"),
    "submit_limit": (SubmitLimit, "job submit limit"),
    "away_submit": (SlurmAway, "Unable to contact slurm controller"),
    "away_queue": (SlurmAway, "Unable to contact slurm controller"),
    "away_job": (SlurmAway, "Unable to contact slurm controller"),
    "away_config": (SlurmAway, "Unable to contact slurm controller"),
    "away_cancel": (SlurmAway, "Unable to contact slurm controller"),
    "away_requeue": (SlurmAway, "Unexpected message received"),
    "requeue_disabled": (RequeueForbidden, "presently disabled"),
    "no_cluster": (UserError, "set SLURM_CONF"),
    "job_unknown": (SlurmError, "Invalid job id"),
    "no_accounting_limits": (SlurmError, "accounting_storage"),
}


@pytest.mark.parametrize(("version", "name"), [(version, name) for name in REFUSED for version in outputs(name)])
def test_refusals(slurm, says, tmp_path, version, name):
    words = says(version, name)["words"]
    calls: dict[str, Callable[[], Any]] = {
        "sbatch": lambda: slurm.sbatch(tmp_path / "job.sh"),
        "squeue": slurm.queue,
        "scancel": lambda: slurm.cancel(["1"]),
        "sacctmgr": slurm.submit_limits,
    }
    of_scontrol = {"requeue": lambda: slurm.requeue("1"), "config": slurm.config, "job": lambda: slurm.show_job("1")}
    calls["scontrol"] = next((call for word, call in of_scontrol.items() if word in words), slurm.config)
    kind, said = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        calls[words[0]]()
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_every_recorded_call_is_tried():
    tried = {*REFUSED, *re.findall(r'(?:of_each|says)\((?:[^,()]+, )?"(\w+)"\)', Path(__file__).read_text())}
    # The rest prints nothing that is read, or is not called by us.
    others = {"held", "array", "quick", "nodes", "cancelled", "cancel_unknown", "limits_none", "queue_resources"}
    assert {file.stem for file in FOLDER.glob("*/*.json")} <= tried | others


@of_each("requeue_pending")
def test_a_job_that_is_requeued_already_is_no_error(slurm, says, version, name):
    says(version, name)
    assert slurm.requeue("12") is None, "whoever was first does not matter"


@of_each("queue_cancelled")
def test_the_queue_after_a_cancel(slurm, says, version, name):
    says(version, name)
    assert "CANCELLED" in {job.state for job in slurm.queue().values()}


@of_each("history_cancelled")
def test_elements_that_never_began_share_a_record(slurm, says, version, name):
    says(version, name)
    assert set(slurm.history(["13"]).values()) == {"CANCELLED"} and len(slurm.history(["13"])) == 6


@of_each("no_accounting")
def test_no_accounting(recorded, slurm, says, version, name):
    says(version, name)
    assert slurm.history(["1"]) == {} and slurm.submitted_as(Path("/x.sh")) is None


@of_each("invalid_field")
def test_a_field_that_sacct_has_not(recorded, slurm, says, version, name):
    says(version, name)
    assert slurm.submitted_as(Path("/x.sh")) is None
    with pytest.raises(SlurmError, match="Invalid field"):
        slurm.history(["1"])


class TestMine:
    """``squeue --me`` came with Slurm 20.02."""

    def test_an_older_squeue_is_asked_for_the_user_and_from_then_on_only_so(self, recorded, slurm, says):
        no_me = says("19.05.7", "no_me")
        answer = "7|RUNNING|None|N/A|1:02|n1|/c.sh\n"
        recorded.refuses("squeue", "--me", no_me["err"], answer)
        assert list(slurm.queue()) == list(slurm.queue()) == ["7"]
        asked = [call.split()[1] for call in recorded.called("squeue")]
        assert asked == ["--me", f"--user={getpass.getuser()}", f"--user={getpass.getuser()}"]

    def test_another_refusal_is_not_taken_for_that(self, recorded, slurm, says):
        says(RECORDED, "unknown_option")
        with pytest.raises(SlurmError, match="unrecognized option"):
            slurm.queue()
        assert len(recorded.called("squeue")) == 2, "asked for the user too, and then given up"
