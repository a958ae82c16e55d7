"""``launcher doctor``: what settings, folders and ranks' answers mean, and what it leaves behind."""

from __future__ import annotations

import json

import pytest

from launcher.__main__ import main
from launcher.doctor.folder_checks import check_folder, file_system, free_space
from launcher.doctor.slurm_checks import check_limits, check_partition, check_settings
from launcher.doctor.trial import Wish, judge, script_text
from launcher.runtime.errors import ExitCode
from tests.launcher.recorded_slurm import AWAY

LOW = {"PartitionName": "low", "Default": "YES", "GraceTime": "20", "PreemptMode": "REQUEUE", "TotalNodes": "4",
       "State": "UP", "MaxTime": "1-00:00:00"}  # fmt: skip
GOOD = {
    "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "JobRequeue": "1", "KillWait": "30 sec",
    "SlurmctldParameters": "preempt_send_user_signal", "MaxArraySize": "10001", "MaxJobCount": "20000",
    "AccountingStorageType": "accounting_storage/slurmdbd", "AuthInfo": "socket=/m,cred_expire=5",
}  # fmt: skip


def settings(low=LOW, **changes):
    """Verdict and line of each finding, by its name."""
    found = check_settings(GOOD | changes, {"low": low}, None)
    return {finding.name: (finding.verdict, str(finding)) for finding in found}


def test_good_settings():
    assert {verdict for verdict, _ in settings().values()} == {"ok"}
    assert "waits 5 s" in settings()["requeue delay"][1]


@pytest.mark.parametrize(
    ("changes", "low", "name", "told"),
    [
        ({}, {"GraceTime": "0"}, "preemption", "KillWait=30 s"),
        ({}, {"PreemptMode": "CANCEL"}, "preemption", "is not requeued"),
        ({"SlurmctldParameters": "(null)"}, {}, "warning", "SIGTERM"),
        ({"JobRequeue": "0"}, {}, "requeue", "--requeue"),
        ({"KillWait": "5 sec"}, {}, "kill wait", "a save must fit"),
        ({"MaxArraySize": "100"}, {}, "arrays", "arrays of 100"),
        ({"MaxArraySize": "0"}, {}, "arrays", "no arrays"),
        ({"AccountingStorageType": "accounting_storage/none", "MinJobAge": "300 sec"}, {}, "accounting", "300 sec"),
    ],
)  # fmt: skip
def test_settings_with_a_drawback(changes, low, name, told):
    verdict, line = settings(LOW | low, **changes)[name]
    assert verdict == "warn" and told in line


@pytest.mark.parametrize(
    ("changes", "low"), [({"PreemptType": "preempt/none"}, {}), ({}, {"PreemptMode": "OFF", "GraceTime": "0"})]
)
def test_nothing_is_preempted(changes, low):
    assert settings(LOW | low, **changes)["preemption"][0] == "ok"


def test_slurms_defaults_are_known():
    assert "waits 120 s" in settings(AuthInfo="(null)")["requeue delay"][1]
    assert dict.fromkeys(f.name for f in check_settings({}, {}, None)), "nothing is required to be said"


@pytest.mark.parametrize(
    ("partitions", "asked", "nodes", "verdict", "told"),
    [
        ({"low": LOW}, None, 2, "ok", "4 nodes"), ({"low": LOW}, "nope", 2, "fail", "choose one of: low"),
        ({"low": LOW}, None, 5, "fail", "5 nodes are more"), ({}, None, 1, "warn", "name one"),
        ({"low": LOW | {"State": "DOWN"}}, "low", 1, "fail", "is DOWN"),
    ],
)  # fmt: skip
def test_partitions(partitions, asked, nodes, verdict, told):
    found = check_partition(partitions, asked, nodes)
    assert found.verdict == verdict and told in str(found)


def test_limits():
    assert check_limits([]).verdict == "ok" == check_limits([("a", "", 5000)]).verdict
    found = check_limits([("lab", "", 5000), ("lab", "low", 20)])
    assert found.verdict == "warn" and "MaxSubmitJobs=20 (account lab, partition low)" in found.text


def test_file_systems(tmp_path):
    mounts = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {} rw,x shared:1 - {} server:/x rw\ngarbage\n"
    assert file_system(tmp_path, mounts.format(tmp_path, "nfs4")).verdict == "ok"
    assert file_system(tmp_path, mounts.format(tmp_path, "tmpfs")).verdict == "warn"
    assert file_system(tmp_path, mounts.format("/elsewhere", "lustre")).text.endswith("looks like this machine's own")


@pytest.mark.parametrize(
    ("free", "inodes", "all_inodes", "verdict"),
    [(10**12, 10**7, 10**8, "ok"), (10**12, 0, 0, "ok"), (5 * 10**9, 10**7, 10**8, "warn"),
     (10**12, 5000, 10**8, "warn"), (10**8, 10**7, 10**8, "fail"), (10**12, 5, 10**8, "fail")],
)  # fmt: skip
def test_room(free, inodes, all_inodes, verdict):
    assert free_space(free, inodes, all_inodes).verdict == verdict


def test_a_real_folder(tmp_path):
    found = {finding.name: finding.verdict for finding in check_folder(tmp_path)}
    assert found["writing"] == found["locks"] == "ok"


def rank(number, **changes):
    found = {
        "rank": number, "host": f"n{number + 1}", "python": "3.11.7", "torch": "2.6", "torch_import_s": 1.0,
        "clock_ahead_s": 0.1, "clock_unsure_s": 0.05, "met_s": 0.5, "all_reduce_s": 0.01, "errors": {},
        "round_trips_s": {"1": 0.1},
    }  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "told"),
    [
        ({}, "all-reduce", "ok", "gloo over 2 ranks"),
        ({"clock_ahead_s": -9.0}, "clocks", "warn", "n2 -9.00 s"),
        ({"clock_ahead_s": 9.0, "clock_unsure_s": 8.0}, "clocks", "ok", "give or take 8.00"),
        ({"torch": "2.7"}, "python", "fail", "differs between nodes"),
        ({"errors": {"torch": "ModuleNotFoundError: no torch"}}, "python", "fail", "n2: ModuleNotFoundError"),
        ({"errors": {"files": "TimeoutError: ping did not appear"}}, "shared folder", "fail", "ping did not appear"),
        ({"errors": {"clock": "TimeoutError: no"}}, "clocks", "warn", "could not be compared"),
        ({"errors": {"product": "ArithmeticError: 3 wrong"}}, "matrix product", "fail", "n2: ArithmeticError: 3 wrong"),
        ({"errors": {"all_reduce": "RuntimeError: Timed out"}}, "all-reduce", "fail", "--interface"),
    ],
)  # fmt: skip
def test_what_ranks_found(changes, name, verdict, told):
    found = {finding.name: finding for finding in judge([rank(0), rank(1, **changes)], Wish(root=None))}
    assert found[name].verdict == verdict and told in str(found[name])


def test_a_slow_folder_is_told():
    (found, *_) = judge([rank(0, round_trips_s={"1": 30.0}), rank(1)], Wish(root=None))
    assert found.verdict == "warn"


def test_the_script_names_what_was_asked_for(tmp_path):
    wish = Wish(tmp_path, nodes=3, gpus=2, python="env/bin/python", interface="ib0", options={"partition": "high x"})
    text = script_text(wish, tmp_path / "a b")
    assert "#SBATCH --nodes=3\n#SBATCH --ntasks-per-node=2\n#SBATCH --time=5\n" in text
    assert "#SBATCH --partition='high x'" in text and "#SBATCH --gpus-per-node=2" in text
    assert "GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0" in text and text.rstrip().endswith("--gpu")


@pytest.fixture
def slurm(recorded_slurm):
    recorded_slurm.says("sbatch", "slurm 22.05.8\n")
    return recorded_slurm


def verdicts(capsys):
    return {line.split()[1]: line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_without_a_job_nothing_is_left(slurm, tmp_path, capsys):
    assert main(["doctor", "--no-job", "--root", "new/runs"]) == 0
    assert verdicts(capsys)["writing"] == "ok"
    assert not (tmp_path / "new").exists() and slurm.called("scancel") == []


def test_a_controller_that_is_away_and_no_slurm_fail(slurm, capsys, monkeypatch):
    slurm.says("scontrol", err=AWAY, code=1)
    assert main(["doctor"]) == ExitCode.USER_ERROR
    assert verdicts(capsys)["slurmctld"] == "fail" and len(slurm.called("sbatch")) == 1
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["doctor", "--json"]) == ExitCode.USER_ERROR
    found = {finding["name"]: finding["verdict"] for finding in json.loads(capsys.readouterr().out)}
    assert found["commands"] == "fail" and found["writing"] == "ok"


def test_a_root_that_cannot_be_written(slurm, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["doctor", "--root", "file/runs"]) == ExitCode.USER_ERROR
    assert verdicts(capsys)["folder"] == "fail"


def test_a_job_that_does_not_start_is_cancelled(slurm, tmp_path, capsys, monkeypatch):
    slurm.says("sbatch", "12\n")
    slurm.says("scontrol", "PartitionName=low Default=YES TotalNodes=4 JobState=PENDING Reason=Resources\n")
    slurm.does("scancel", f"echo 'JobState=CANCELLED' > {tmp_path}/slurm/scontrol.out")
    assert main(["doctor", "--patience", "1"]) == 0
    out = capsys.readouterr().out
    assert "job 12 did not start within 1 s (Resources); it was cancelled" in out
    assert slurm.called("scancel") == ["scancel --quiet 12"] and not (tmp_path / "runs").exists()


def test_a_job_that_slurm_refuses(slurm, tmp_path, capsys):
    there = tmp_path / "slurm"
    refuse = (
        f"echo 'sbatch: error: invalid partition specified: nope' > {there}/sbatch.err; echo 1 > {there}/sbatch.code"
    )
    slurm.does("sbatch", f"if grep -q parsable {there}/calls; then {refuse}; fi")
    slurm.says("scontrol", "PartitionName=low Default=YES TotalNodes=4\n")
    assert main(["doctor"]) == ExitCode.USER_ERROR
    assert "invalid partition specified: nope" in capsys.readouterr().out and not (tmp_path / "runs").exists()
