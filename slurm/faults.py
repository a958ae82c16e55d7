"""Faults of a cluster, made by Slurm's own means: a preemption, a node that fails, a node that comes back."""

from __future__ import annotations

from dataclasses import dataclass

from slurm import processes, programs
from slurm.cluster import Cluster
from slurm.errors import ClusterError

_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
_SLACK_S = 60.0
"""Longest wait for a preemption, beyond the partition's grace time: the scheduler's rounds, KillWait, the requeue."""


@dataclass(frozen=True)
class Job:
    """What ``scontrol show job`` says of one job."""

    state: str
    partition: str
    nodes: str
    restarts: int
    preempted_at: str | None
    """When Slurm last warned it of a preemption; None: never."""


def show_job(cluster: Cluster, job: str) -> Job:
    """Read one job. ``job`` is an id, or ``12_3`` for an element of an array.

    Raises:
        ClusterError: no cluster runs, there is no such job, or it is a whole array.
    """
    number, _, element = job.partition("_")
    if not number.isdecimal() or (element and not element.isdecimal()):
        raise ClusterError(f"job {job!r}: should be a number, or 12_3 for an element of an array")
    _require_running(cluster)
    lines = programs.client(cluster.layout, "scontrol", "show", "job", "-o", job).splitlines()
    if len(lines) != 1:
        raise ClusterError(f"job {job}: an array of {len(lines)} records; name one element, like {job}_0")
    values = dict(word.partition("=")[::2] for word in lines[0].split())
    warned = values.get("PreemptTime", "None")
    return Job(
        state=values["JobState"],
        partition=values["Partition"],
        nodes=values["NodeList"],
        restarts=int(values["Restarts"]),
        preempted_at=None if warned == "None" else warned,
    )


def preempt(cluster: Cluster, job: str) -> str:
    """Let Slurm preempt a running job of partition ``low``, with whatever else of ``low`` runs on its nodes.

    A job of ``high`` asks for all of these nodes. Slurm warns what is in its way, waits for the grace time, ends and
    requeues it. As soon as ``job`` has left its nodes the job of ``high`` is cancelled. Returns a line that says how
    the attempt ended.

    Raises:
        ClusterError: the job is not running in ``low``, or Slurm did not preempt it.
    """
    before = show_job(cluster, job)
    if before.state != "RUNNING" or before.partition != "low":
        raise ClusterError(f"job {job} is {before.state} in {before.partition}: only a RUNNING job of low is preempted")
    wish = ("-p", "high", "-w", before.nodes, "--exclusive", "--mem=0", "--time=10", "--no-requeue")
    quiet = ("--job-name=preempt", "--output=/dev/null", "--chdir=/", "--export=NONE")
    blocker = programs.client(cluster.layout, "sbatch", "--parsable", *wish, *quiet, "--wrap=sleep 600").strip()
    after = before

    def over() -> bool:
        nonlocal after
        after = show_job(cluster, job)
        return after.restarts > before.restarts or after.state in _FINAL

    try:
        over_in_time = processes.wait_until(over, cluster.spec.grace_s + _SLACK_S)
        in_the_way = show_job(cluster, blocker)
    finally:
        programs.client(cluster.layout, "scancel", blocker)
    if not over_in_time:
        raise ClusterError(
            f"job {job} is still {after.state}; the job of high that should take its place, {blocker}, "
            f"is {in_the_way.state}: does another job of high run on {before.nodes}?"
        )
    if after.restarts == before.restarts:
        return f"job {job} was warned at {after.preempted_at} and ended {after.state}, not requeued"
    return f"job {job} was preempted and requeued; it has been restarted {after.restarts} times when it runs again"


def fail_node(cluster: Cluster, node: str, *, tasks_survive: bool = False) -> str:
    """Kill what runs on ``node``, without warning. Slurm misses it after SlurmdTimeout and requeues its jobs.

    With ``tasks_survive`` only its slurmd dies: as if the network had failed, its jobs' processes go on while Slurm
    starts the same jobs elsewhere. Returns a line that says what was done.

    Raises:
        ClusterError: there is no such node.
    """
    _require_node(cluster, node)
    kinds = ("slurmd",) if tasks_survive else ("slurmd", "slurmstepd", processes.TASK)

    def there() -> list[processes.Process]:
        return [process for process in cluster.processes() if process.node == node and process.kind in kinds]

    if not there():
        return f"{node} has failed already"
    processes.end(there, grace_s=0)
    return f"{node} has failed; Slurm calls it down within about half a minute"


def restore_node(cluster: Cluster, node: str) -> str:
    """Start the slurmd of ``node`` again and wait until Slurm can give it work. Returns a line that says what was done.

    Raises:
        ClusterError: there is no such node, or it would not come back.
    """
    _require_node(cluster, node)
    if any(process.node == node and process.kind == "slurmd" for process in cluster.processes()):
        return f"{node} is there already"
    cluster.start_node(node)
    return f"{node} is back"


def _require_node(cluster: Cluster, node: str) -> None:
    if node not in cluster.spec.node_names:
        raise ClusterError(f"node {node!r}: should be one of {', '.join(cluster.spec.node_names)}")
    _require_running(cluster)


def _require_running(cluster: Cluster) -> None:
    if not any(process.kind == "slurmctld" for process in cluster.processes()):
        raise ClusterError(f"no cluster runs in {cluster.layout.folder}: python -m slurm up")
