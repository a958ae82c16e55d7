"""The disposable cluster, on a real Slurm: it runs jobs, preempts, loses nodes and gets them back, and goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import faults
from slurm.cluster import Cluster
from slurm.daemons import node_states
from slurm.errors import ClusterError
from slurm.processes import wait_until
from slurm.render import Spec
from tests.conftest import REPOSITORY
from tests.integration.conftest import Client, client_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

# Writes a line for its start and each signal into the file named by $1; ends by SIGTERM only.
WATCH = """\
note() { echo "$1 ${SLURM_RESTART_COUNT:-0}" >> "$LINES_FILE"; }
trap 'note USR2' USR2
trap 'note TERM; exit 143' TERM
note start
while true; do sleep 0.1; done
"""


def submit_watch(client: Client, folder: Path, *options: str) -> tuple[str, Path]:
    """Submit a job that writes down what happens to it; its id, and its lines' file."""
    lines = folder / "lines"
    (folder / "watch.sh").write_text(WATCH)
    script = folder / "job.sh"
    script.write_text(f"#!/bin/bash\nexport LINES_FILE={lines}\nsrun -K1 bash {folder}/watch.sh\n")
    quiet = ("--output=/dev/null", "--signal=USR2@60", "--requeue")
    return client("sbatch", "--parsable", *quiet, *options, str(script)).strip(), lines


def wrote(lines: Path, line: str, times: int = 1) -> Callable[[], bool]:
    """Whether ``line`` stands ``times`` times in the file."""
    return lambda: lines.exists() and lines.read_text().splitlines().count(line) >= times


def test_a_job_runs_to_its_end_in_low(client: Client, tmp_path: Path):
    client("sbatch", "--wait", "--output=out", "--wrap", "echo $SLURM_JOB_PARTITION on $SLURMD_NODENAME")
    assert (tmp_path / "out").read_text() == "low on n1\n"


def test_a_job_that_fails_fails_in_slurm(client: Client):
    with pytest.raises(AssertionError):
        client("sbatch", "--wait", "--output=/dev/null", "--wrap", "exit 3")


def test_a_step_runs_on_two_nodes(client: Client):
    answer = client("srun", "-N2", "--ntasks-per-node=2", "-l", "printenv", "SLURMD_NODENAME")
    assert sorted(answer.splitlines()) == ["0: n1", "1: n1", "2: n2", "3: n2"]


def test_gpu_slots_are_handed_out_and_counted(client: Client):
    assert client("srun", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1\n"
    both = client("srun", "-N1", "-n2", "--gres=gpu:2", "--gpus-per-task=1", "-l", "printenv", "CUDA_VISIBLE_DEVICES")
    assert len(set(both.split()[1::2])) == 2, "each task has a slot of its own"
    with pytest.raises(AssertionError, match="node configuration is not available"):
        client("srun", "--gres=gpu:3", "true")


def test_an_array_is_cut_where_the_cluster_says(client: Client):
    client("sbatch", "--test-only", "--array=0-10000", "--wrap", "true")
    with pytest.raises(AssertionError, match="Invalid job array"):
        client("sbatch", "--array=10001", "--wrap", "true")


@pytest.mark.parametrize(
    ("option", "told"),
    [("--partition=nope", "invalid partition"), ("--account=nope", "Invalid account"), ("--time=2-0", "time limit")],
)
def test_what_cannot_run_is_refused_at_once(client: Client, option: str, told: str):
    with pytest.raises(AssertionError, match=told):
        client("sbatch", "--test-only", option, "--wrap", "true")


def test_accounting_knows_a_finished_job(client: Client):
    job = client("sbatch", "--wait", "--parsable", "--output=/dev/null", "--wrap", "true").strip()
    row = f"{job}|COMPLETED|lab|\n"
    assert wait_until(lambda: client("sacct", "-nXp", "-j", job, "-o", "JobID,State,Account") == row, 30)


def test_preemption_warns_requeues_and_runs_again(cluster: Cluster, client: Client, tmp_path: Path):
    job, lines = submit_watch(client, tmp_path, "-N2")
    assert wait_until(wrote(lines, "start 0", times=2), 30)
    assert "was preempted and requeued" in faults.preempt(cluster, job)
    assert wait_until(wrote(lines, "start 1", times=2), 60)
    written = lines.read_text().splitlines()
    assert written.count("USR2 0") == 2 and written.count("TERM 0") >= 2  # Slurm may say it again until they end
    assert written.index("USR2 0") < written.index("TERM 0") < written.index("start 1")
    assert faults.show_job(cluster, job).restarts == 1
    client("scancel", job)
    assert client("squeue", "-h", "--partition=high") == "", "nothing is left of what took its place"


def test_a_job_that_does_not_run_is_not_preempted(cluster: Cluster, client: Client):
    job = client("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
    with pytest.raises(ClusterError, match="is PENDING in low"):
        faults.preempt(cluster, job)
    client("scancel", job)


@pytest.mark.parametrize("tasks_survive", [False, True])
def test_a_failed_node_loses_its_job_and_comes_back(
    cluster: Cluster, client: Client, tmp_path: Path, tasks_survive: bool
):
    job, lines = submit_watch(client, tmp_path, "-w", "n2")
    assert wait_until(wrote(lines, "start 0"), 30)
    faults.fail_node(cluster, "n2", tasks_survive=tasks_survive)
    left = {process.kind for process in cluster.processes() if process.node == "n2"}
    assert left == ({"slurmstepd", "task"} if tasks_survive else set())
    assert wait_until(lambda: node_states(cluster.layout)["n2"].startswith("down"), 60)
    assert wait_until(lambda: faults.show_job(cluster, job).restarts == 1, 60)
    assert faults.restore_node(cluster, "n2") == "n2 is back"
    assert faults.restore_node(cluster, "n2") == "n2 is there already"
    assert wait_until(wrote(lines, "start 1"), 60)
    client("scancel", job)
    assert wait_until(lambda: not client("squeue", "-h", "-j", job, "-t", "R,CG"), 30)


def test_two_clusters_side_by_side_do_not_meet(cluster: Cluster, client: Client, folders, tmp_path: Path):
    with Cluster(folders(), Spec(nodes=1, gpus=0, max_array_size=3)) as other:
        theirs = client_of(other, tmp_path)
        held = theirs("sbatch", "--parsable", "--hold", "--array=0-2", "--wrap", "true").strip()
        assert held in theirs("squeue", "-h", "-o", "%F")
        assert client("squeue", "-h", "--name=wrap", "-t", "PD") == ""
        with pytest.raises(AssertionError, match="Invalid job array"):
            theirs("sbatch", "--array=3", "--wrap", "true")
    assert other.processes() == []
    assert cluster.status().missing == ()


def test_up_again_says_so_and_mends_what_is_missing(folders, tmp_path: Path):
    with Cluster(folders(), Spec(nodes=2)) as running:
        assert Cluster(running.layout.folder).up().startswith("it is up already (2 nodes")
        client = client_of(running, tmp_path)
        job = client("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
        saved, folder = running.layout.state / "job_state", str(tmp_path).encode()
        assert wait_until(lambda: saved.exists() and folder in saved.read_bytes(), 30), "a job is saved in seconds"
        for process in running.processes():
            if process.kind == "slurmctld" or process.node == "n2":
                os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: set(running.status().missing) == {"slurmctld", "n2"}, 10)
        assert running.up().startswith("started slurmctld, n2 again")
        assert client("squeue", "-h", "-o", "%i").strip() == job, "jobs outlive their controller"
        assert running.status().missing == ()


def test_after_kill_9_of_everything_up_begins_anew_and_leaves_no_stray(folders, tmp_path: Path):
    with Cluster(folders(), Spec(nodes=2, accounting=True)) as running:
        client = client_of(running, tmp_path)
        job, lines = submit_watch(client, tmp_path)
        assert wait_until(wrote(lines, "start 0"), 30)
        stray = next(process for process in running.processes() if process.kind == "task")
        for process in running.processes():
            if process.kind not in ("task", "slurmstepd"):
                os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not running.status().daemons, 10)
        assert running.up().startswith("2 nodes are up")
        assert stray not in running.processes()
        assert client("squeue", "-h") == ""
        fresh = client("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
        assert int(fresh) > int(job), "an id of the life before is never given again"


def test_down_leaves_no_process_and_clients_do_not_hang(folders, tmp_path: Path):
    cluster = Cluster(folders(), Spec(nodes=2, accounting=True))
    cluster.up()
    _, lines = submit_watch(client_of(cluster, tmp_path), tmp_path)
    assert wait_until(wrote(lines, "start 0"), 30)
    assert {process.kind for process in cluster.processes()} >= {"mariadbd", "slurmstepd", "task"}
    assert cluster.down()
    assert cluster.processes() == []
    assert not cluster.down()
    assert wrote(lines, "TERM 0")()


def test_a_cluster_that_cannot_begin_says_why_and_leaves_nothing(folders, monkeypatch: pytest.MonkeyPatch):
    broken = Cluster(folders(), Spec(nodes=1))
    monkeypatch.setattr("slurm.render._MEMORY_MB", "plenty")
    with pytest.raises(ClusterError, match=r"slurmctld (ended|would not start)[^\n]*\n  slurmctld.log: "):
        broken.up()
    assert broken.processes() == []


def test_the_command_line(folders, tmp_path: Path):
    folder = folders()

    def slurm(*words: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        words = (sys.executable, "-m", "slurm", *words, "--dir", str(folder))
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    try:
        up = slurm("up", "--nodes", "1")
        assert up.stdout == f"export SLURM_CONF={folder.resolve()}/etc/slurm.conf\n", up.stderr
        assert "n1          idle" in slurm("status").stdout
        assert '"missing": []' in slurm("status", "--json").stdout
        unknown = slurm("preempt", "77")
        assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
        assert "should be one of n1" in slurm("fail-node", "n9").stderr
        assert slurm("fail-node", "n1").returncode == 0
        assert "has failed already" in slurm("fail-node", "n1").stderr
        assert slurm("restore-node", "n1").stderr == "n1 is back\n"
    finally:
        assert slurm("down").returncode == 0
    assert Cluster(folder).processes() == []
