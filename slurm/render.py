"""Configuration files of a cluster: pure functions from a frozen description to the text of each file.

Names and meanings: slurm.conf(5), gres.conf(5), slurmdbd.conf(5) of Slurm 22.05.
"""

from __future__ import annotations

from dataclasses import dataclass

from slurm.errors import ClusterError
from slurm.layout import Layout

CLUSTER_NAME = "disposable"
"""Slurm's name for each cluster of this package; each keeps to its own folder, so they need not differ."""
_MEMORY_MB = 65536
"""Claimed memory of a node. Slurm shares it out between jobs; nothing enforces it here."""


@dataclass(frozen=True)
class Spec:
    """What a cluster is asked to be.

    Raises:
        ClusterError: a number is out of its range.
    """

    nodes: int = 4
    """Nodes, ``n1`` to ``n<nodes>``, 1 to 64: one slurmd each."""
    cpus: int = 4
    """CPUs that each node claims, 1 to 256; more than the machine has is fine."""
    gpus: int = 2
    """GPU slots of each node, 0 to 16: counted and handed out by Slurm, with /dev/null behind them."""
    accounting: bool = False
    """With slurmdbd and MariaDB: sacct, accounts, limits."""
    max_array_size: int = 10_001
    """Slurm's MaxArraySize, 1 to 4,000,001: the largest index of an array is one less."""
    grace_s: int = 20
    """Seconds between the warning of a preemption and SIGTERM, 0 to 3600."""
    kill_wait_s: int = 5
    """Seconds between SIGTERM and SIGKILL (Slurm's KillWait), 1 to 300."""
    user_signal: bool = True
    """A preemption begins with the job's own ``--signal`` (``preempt_send_user_signal``); without, with SIGTERM."""
    requeue: bool = True
    """What is preempted goes back into the queue. False: it is cancelled (``PreemptMode=CANCEL``, ``JobRequeue=0``)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        ranges = {
            "nodes": (1, 64), "cpus": (1, 256), "gpus": (0, 16), "max_array_size": (1, 4_000_001),
            "grace_s": (0, 3600), "kill_wait_s": (1, 300),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.removesuffix("_s").replace("_", "-")
                raise ClusterError(f"--{option} {value}: should be from {low} to {high}")

    @property
    def node_names(self) -> tuple[str, ...]:
        """``n1`` … in order."""
        return tuple(f"n{i}" for i in range(1, self.nodes + 1))


@dataclass(frozen=True)
class Site:
    """What is found out on this machine when a cluster starts."""

    user: str
    """Who runs the daemons and owns the cluster."""
    slurmctld_port: int
    slurmdbd_port: int
    slurmd_ports: tuple[int, ...]
    """One for each node, in order."""
    first_job: int = 1
    """First job id of this life of the cluster."""


def slurm_conf(spec: Spec, site: Site, layout: Layout) -> str:
    """Text of slurm.conf."""
    sections = [
        _daemons(spec, site, layout),
        _scheduling(spec, site),
        _accounting(spec, site, layout),
        _nodes(spec, site),
    ]
    return "# Written by `python -m slurm up`; lost with the next one.\n" + "\n".join(sections)


def _daemons(spec: Spec, site: Site, layout: Layout) -> str:
    # cred_expire is also how long a requeued job waits before it may start again: two minutes by default.
    return f"""
ClusterName={CLUSTER_NAME}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={site.slurmctld_port}
SlurmUser={site.user}
SlurmdUser={site.user}
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket},cred_expire=5
StateSaveLocation={layout.state}
SlurmdSpoolDir={layout.spool}/%n
SlurmctldPidFile={layout.pid_file("slurmctld")}
SlurmdPidFile={layout.pid_file("%n")}
SlurmctldLogFile={layout.log("slurmctld")}
SlurmdLogFile={layout.log("%n")}
SlurmctldDebug=info
SlurmdDebug=info
LogTimeFormat=iso8601_ms
# Everything stays on this machine.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# One machine plays all nodes, without cgroups: processes are found by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
SlurmctldTimeout=15
KillWait={spec.kill_wait_s}
"""


def _scheduling(spec: Spec, site: Site) -> str:
    gres = "GresTypes=gpu\n" if spec.gpus else ""
    user_signal = "SlurmctldParameters=preempt_send_user_signal\n" if spec.user_signal else ""
    return f"""
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1024
{gres}SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode={_preempt_mode(spec)}
{user_signal}JobRequeue={int(spec.requeue)}
EnforcePartLimits=ALL
MaxJobCount={max(20_000, 2 * spec.max_array_size)}
MaxArraySize={spec.max_array_size}
FirstJobId={site.first_job}
"""


def _accounting(spec: Spec, site: Site, layout: Layout) -> str:
    if not spec.accounting:
        return "\nAccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\n"
    tracked = "AccountingStorageTRES=gres/gpu\n" if spec.gpus else ""
    return f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={site.slurmdbd_port}
AccountingStoragePass={layout.munge_socket}
AccountingStorageEnforce=associations,limits,qos
{tracked}JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
"""


def _nodes(spec: Spec, site: Site) -> str:
    gres = f" Gres=gpu:{spec.gpus}" if spec.gpus else ""
    claims = f"NodeHostname=localhost NodeAddr=127.0.0.1 CPUs={spec.cpus} RealMemory={_MEMORY_MB}{gres} State=UNKNOWN"
    nodes = zip(spec.node_names, site.slurmd_ports, strict=True)
    lines = [f"NodeName={name} Port={port} {claims}" for name, port in nodes]
    mode, partition = _preempt_mode(spec), "Nodes=ALL DefaultTime=01:00:00 MaxTime=1-00:00:00 State=UP"
    low = f"PartitionName=low Default=YES PriorityTier=1 PreemptMode={mode} GraceTime={spec.grace_s} {partition}"
    high = f"PartitionName=high PriorityTier=10 PreemptMode=OFF {partition}"
    return "\n" + "\n".join([*lines, low, high]) + "\n"


def _preempt_mode(spec: Spec) -> str:
    return "REQUEUE" if spec.requeue else "CANCEL"


def gpu_files(spec: Spec, layout: Layout) -> list[str]:
    """Paths of the links to /dev/null that stand for GPU slots.

    Slurm numbers a slot by the end of its file's name, and sets CUDA_VISIBLE_DEVICES only where it is a device.
    """
    return [f"{layout.gpus}/{node}-gpu{slot}" for node in spec.node_names for slot in range(spec.gpus)]


def gres_conf(spec: Spec, layout: Layout) -> str:
    """Text of gres.conf: the GPU slots of each node; no line where there are none."""
    slots = f"[0-{spec.gpus - 1}]" if spec.gpus > 1 else "0"
    names = spec.node_names if spec.gpus else ()
    return "".join(f"NodeName={node} Name=gpu File={layout.gpus}/{node}-gpu{slots}\n" for node in names)


def slurmdbd_conf(site: Site, layout: Layout) -> str:
    """Text of slurmdbd.conf. MariaDB's socket is no setting of it: MYSQL_UNIX_PORT names it to the client library.

    The user is MariaDB's own root, without a password; whoever cannot enter the database's folder cannot reach it.
    """
    return f"""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={site.slurmdbd_port}
SlurmUser={site.user}
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
PidFile={layout.pid_file("slurmdbd")}
LogFile={layout.log("slurmdbd")}
DebugLevel=info
LogTimeFormat=iso8601_ms
"""
