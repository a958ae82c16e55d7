"""The text of each configuration file, from its description alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.errors import ClusterError
from slurm.layout import Layout
from slurm.render import Site, Spec, gpu_files, gres_conf, slurm_conf, slurmdbd_conf

LAYOUT = Layout(Path("/c"))


def site(nodes: int) -> Site:
    return Site("ann", 20_000, 20_001, tuple(range(20_002, 20_002 + nodes)), first_job=300_001)


def settings(text: str) -> dict[str, str]:
    """``Name=value`` lines; nodes and partitions by their whole first word."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    first = [line.split()[0] if line.startswith(("NodeName", "PartitionName")) else line for line in lines]
    assert len({word.partition("=")[0] for word in first if not word.startswith(("Node", "Part"))}) == len(
        [word for word in first if not word.startswith(("Node", "Part"))]
    ), "a setting stands twice"
    named = zip(first, lines, strict=True)
    return {
        word if word.startswith(("Node", "Part")) else word.partition("=")[0]: line.partition("=")[2]
        for word, line in named
    }


def test_all_that_belongs_to_a_cluster_lies_in_its_folder():
    text = slurm_conf(Spec(accounting=True), site(4), LAYOUT) + slurmdbd_conf(site(4), LAYOUT)
    paths = [word.split(",")[0] for line in text.splitlines() for word in line.split("=") if word.startswith("/")]
    assert len(paths) > 10
    assert all(path.startswith("/c/") for path in paths)


def test_nodes_have_one_port_each_and_resolve_without_a_name_service():
    conf = settings(slurm_conf(Spec(nodes=3, cpus=8, gpus=1), site(3), LAYOUT))
    nodes = [conf[f"NodeName=n{i}"] for i in (1, 2, 3)]
    assert [f"Port={port}" in node for port, node in zip((20_002, 20_003, 20_004), nodes, strict=True)] == [True] * 3
    assert all("NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=8" in node and "Gres=gpu:1" in node for node in nodes)
    assert "NodeName=n4" not in conf


def test_the_signal_of_a_preemption_and_the_wait_before_sigkill_can_be_chosen():
    conf = settings(slurm_conf(Spec(kill_wait_s=9, user_signal=False), site(4), LAYOUT))
    assert conf["KillWait"] == "9" and "SlurmctldParameters" not in conf
    assert settings(slurm_conf(Spec(), site(4), LAYOUT))["SlurmctldParameters"] == "preempt_send_user_signal"


def test_low_is_preempted_by_high_with_a_grace_and_a_user_signal():
    conf = settings(slurm_conf(Spec(grace_s=7), site(4), LAYOUT))
    assert conf["PreemptType"] == "preempt/partition_prio"
    assert conf["SlurmctldParameters"] == "preempt_send_user_signal"
    low, high = conf["PartitionName=low"].split(), conf["PartitionName=high"].split()
    assert {"Default=YES", "PreemptMode=REQUEUE", "GraceTime=7", "PriorityTier=1"} <= set(low)
    assert {"PriorityTier=10", "PreemptMode=OFF"} <= set(high)


def test_a_cluster_may_cancel_what_it_preempts():
    conf = settings(slurm_conf(Spec(requeue=False), site(4), LAYOUT))
    assert (conf["JobRequeue"], conf["PreemptMode"]) == ("0", "CANCEL")
    assert "PreemptMode=CANCEL" in conf["PartitionName=low"].split()


def test_a_requeued_job_starts_again_soon():
    conf = settings(slurm_conf(Spec(), site(4), LAYOUT))
    assert conf["AuthInfo"].endswith("cred_expire=5")
    assert (conf["JobRequeue"], conf["ReturnToService"], conf["SlurmdTimeout"]) == ("1", "2", "15")


@pytest.mark.parametrize("size", [5, 10_001, 100_000])
def test_there_is_room_for_more_jobs_than_one_array_and_for_ten_thousand(size: int):
    conf = settings(slurm_conf(Spec(max_array_size=size), site(4), LAYOUT))
    assert int(conf["MaxArraySize"]) == size
    assert int(conf["MaxJobCount"]) >= max(10_000, size)


def test_ids_begin_where_the_life_before_cannot_have_come():
    assert settings(slurm_conf(Spec(), site(4), LAYOUT))["FirstJobId"] == "300001"


def test_without_gpus_nothing_speaks_of_gres():
    spec = Spec(gpus=0)
    assert "gres" not in slurm_conf(spec, site(4), LAYOUT).lower()
    assert gres_conf(spec, LAYOUT) == ""
    assert gpu_files(spec, LAYOUT) == []


@pytest.mark.parametrize(("gpus", "slots"), [(1, "0"), (2, "[0-1]"), (3, "[0-2]")])
def test_gres_names_the_files_that_are_made(gpus: int, slots: str):
    spec = Spec(nodes=2, gpus=gpus)
    assert gres_conf(spec, LAYOUT).splitlines() == [
        f"NodeName={node} Name=gpu File=/c/gpus/{node}-gpu{slots}" for node in ("n1", "n2")
    ]
    assert gpu_files(spec, LAYOUT) == [f"/c/gpus/{node}-gpu{i}" for node in ("n1", "n2") for i in range(gpus)]


def test_accounting_asks_slurmdbd_and_enforces_what_it_says():
    off = settings(slurm_conf(Spec(), site(4), LAYOUT))
    on = settings(slurm_conf(Spec(accounting=True), site(4), LAYOUT))
    assert off["AccountingStorageType"] == "accounting_storage/none"
    assert on["AccountingStorageType"] == "accounting_storage/slurmdbd"
    assert on["AccountingStoragePort"] == settings(slurmdbd_conf(site(4), LAYOUT))["DbdPort"] == "20001"
    assert on["AccountingStorageEnforce"] == "associations,limits,qos"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("nodes", 0, "--nodes 0: should be from 1 to 64"),
        ("cpus", 257, "--cpus 257: should be from 1 to 256"),
        ("gpus", -1, "--gpus -1: should be from 0 to 16"),
        ("max_array_size", 0, "--max-array-size 0: should be from 1 to 4000001"),
        ("kill_wait_s", 0, "--kill-wait 0: should be from 1 to 300"),
        ("grace_s", -1, "--grace -1: should be from 0 to 3600"),
    ],
)
def test_numbers_out_of_range_are_refused(field: str, value: int, words: str):
    with pytest.raises(ClusterError, match=f"^{words}$"):
        Spec(**{field: value})


@pytest.mark.parametrize("folder", ["/a b", "/a#b", "/a,b", "/a=b", "/a[1]", "/a%n", "/a\nb", "/" + "x" * 70])
def test_a_folder_that_slurm_cannot_name_is_refused(folder: str):
    with pytest.raises(ClusterError, match="--dir"):
        Layout(Path(folder)).check()
