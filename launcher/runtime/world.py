"""Where this process stands among its peers, and on what device: the only reader of the environment."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.place import job_id, number, place

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among ``size``. Ranks and nodes are 0-based; ``device`` is ``cpu`` or ``cuda:<index>``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node_rank: int = 0
    nodes: int = 1
    device: str = "cpu"
    micro_batch: int | None = None
    """Most samples that one forward pass may hold here; None: no limit."""
    source: str = "single"
    """Who said so: ``slurm`` (a step of srun), ``submitit`` (a local queue), ``torchrun`` or ``single``."""
    host: str = ""
    """Name of this machine."""
    job_id: str | None = None
    """``<id>``, or ``<array id>_<element>``, of the job that this process belongs to; None outside of any."""
    restarts: int = 0
    """How often that job was put back into the queue before (SLURM_RESTART_COUNT, place.LOCAL_RESTARTS)."""
    incarnation: str = "single"
    """A folder name that all ranks of one start share, and no other start has."""
    node_name: str = ""
    """What Slurm calls this node (SLURMD_NODENAME)."""
    launch_address: str = ""
    """Where Slurm says that the step was launched (SLURM_LAUNCH_NODE_IPADDR)."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The environment of this process as it was given."""

    @property
    def node(self) -> str:
        """What people call this node: Slurm's name of it, else the machine's."""
        return self.node_name or self.host

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that all ranks share."""
        return self.rank == 0

    def folder(self, key: str, text: str) -> Path:
        """The folder that ``text``, the value of ``key``, names on this node, with its variables as they are here.

        Raises:
            UserError: a variable is not set or empty here, or the folder is not absolute.
        """
        names = [braced or plain for braced, plain in _VARIABLE.findall(text)]
        if missing := [name for name in names if not self.variables.get(name)]:
            raise UserError(f"{key}={text}: {missing[0]} is not set on {self.node or 'this node'}; name another folder")
        path = Path(_VARIABLE.sub(lambda found: self.variables[found[1] or found[2]], text))
        if not path.is_absolute():
            raise UserError(f"{key}={text}: is {path} on {self.node or 'this node'}; should begin with a slash")
        return path

    @staticmethod
    def from_env(
        env: Mapping[str, str], device: str, micro_batch: int | None = None, *, gpus: int | None = None
    ) -> World:
        """Read the world that torchrun, a local queue or a step of srun describes, or a world of one.

        The innermost wins: torchrun, then the queue, then the step. A batch script or an ``salloc`` shell is no step:
        one process, however many tasks its job asked for.

        Args:
            device: ``cpu`` or ``cuda``; on ``cuda`` the local rank chooses the GPU.
            gpus: how many GPUs this process can see; None: not known, believe the local rank.

        Raises:
            UserError: a variable is missing, no number, or contradicts another; there is no GPU for the local rank.
        """
        found = place(env)
        restarts = number(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0
        return World(
            device=_gpu(found["local_rank"], gpus) if device == "cuda" else device,
            micro_batch=micro_batch,
            host=socket.gethostname(),
            node_name=env.get("SLURMD_NODENAME", ""),
            launch_address=env.get("SLURM_LAUNCH_NODE_IPADDR", ""),
            variables=dict(env),
            **{"job_id": job_id(env), "restarts": restarts} | found,
        )

    def alone(self) -> World:
        """This process as a world of one, where the others do not take part in what it does."""
        return replace(self, rank=0, size=1, local_rank=0, node_rank=0, nodes=1)

    def require_size(self, nodes: int | None, tasks_per_node: int | None) -> None:
        """See that a job has the ranks that its plan asked for. None: the plan does not say.

        Raises:
            UserError: Slurm or the local queue started another number of tasks or nodes.
        """
        if self.source not in ("slurm", "submitit") or nodes is None or tasks_per_node is None:
            return
        wanted = nodes * tasks_per_node
        if self.size != wanted or (self.source == "slurm" and self.nodes != nodes):
            raise UserError(
                f"{self.source} started {self.size} tasks on {self.nodes} nodes, but the plan asks for "
                f"hardware.nodes={nodes} x hardware.tasks_per_node={tasks_per_node} = {wanted}: "
                f"start it with --nodes={nodes} --ntasks-per-node={tasks_per_node}, or plan it anew"
            )


SCRATCH = "LAUNCHER_SCRATCH"
"""Environment variable of a job: the folder on its node's own disk that its site has (``site.scratch``)."""
STREAMING = "glibc.cpu.x86_non_temporal_threshold=0x80000"
"""For ``GLIBC_TUNABLES`` of a process that trains: from half a megabyte on memory is copied past the processor's
caches, as the copy of a state wants it (glibc manual, "Hardware Capability Tunables"). Other C libraries take no
notice; glibc reads it when a program starts, so only whoever starts one can say it."""


def tunables(given: str | None) -> str:
    """``GLIBC_TUNABLES`` for a process that trains; what is ``given`` already wins."""
    return ":".join(filter(None, (STREAMING, given)))


_OF_TRACKERS = {
    # Seconds and tries: a server that is away is found to be in half a minute, not in an hour. It holds up nobody.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # of compute nodes that often reach no network; it starts a thread
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # MLflow's GitPython complains where there is no git
}
"""What trackers' libraries read."""


def set_defaults(env: MutableMapping[str, str], threads: int | None = None) -> None:
    """Set, before torch is imported, what libraries of this process read from the environment; the user's own stays.

    Args:
        threads: how many threads a process computes with (``hardware.cpus_per_task``); None: the libraries decide.
    """
    # Without it cuBLAS has no deterministic algorithms (cuBLAS manual, "Results reproducibility").
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    env.setdefault("KINETO_LOG_LEVEL", "6")  # else torch's profiler writes two lines on stderr for each window
    for name, value in _OF_TRACKERS.items():
        env.setdefault(name, value)
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(threads))


def set_interface(env: MutableMapping[str, str], given: str | None, found: str | None) -> None:
    """Name the network interface that gloo and NCCL use, before a process group is made; the user's own stays.

    Args:
        given: what the site says; both obey it.
        found: the interface by which rank 0 is reached. Gloo, which would ask for the address of the host's name
            (often 127.0.1.1), takes it; NCCL finds its own.
    """
    if given:
        env.setdefault("GLOO_SOCKET_IFNAME", given)
        env.setdefault("NCCL_SOCKET_IFNAME", given)
    elif found:
        env.setdefault("GLOO_SOCKET_IFNAME", found)


def array_element(env: Mapping[str, str]) -> int | None:
    """Number of this element of a Slurm array, or None outside of one.

    Raises:
        UserError: it is no number.
    """
    return number(env, "SLURM_ARRAY_TASK_ID") if "SLURM_ARRAY_TASK_ID" in env else None


def _gpu(local_rank: int, gpus: int | None) -> str:
    if gpus == 1:  # bound to its task: each process sees its own as the first
        return "cuda:0"
    if gpus is not None and local_rank >= gpus:
        raise UserError(
            f"local rank {local_rank}: there is no GPU for it, {gpus} are visible; "
            "ask for hardware.gpus_per_node=hardware.tasks_per_node, or use hardware=cpu"
        )
    return f"cuda:{local_rank}"
