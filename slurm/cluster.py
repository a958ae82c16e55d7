"""A cluster in a folder: up, down, what it is doing."""

from __future__ import annotations

import dataclasses
import fcntl
import getpass
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from slurm import daemons, processes, programs, render
from slurm.errors import ClusterError
from slurm.layout import Layout
from slurm.processes import Process
from slurm.render import Site, Spec

# Kinds of processes in the order of their end, and the seconds that each has after SIGTERM. Jobs may want to save;
# daemons are not waited for, as nothing of theirs is kept. A slurmstepd would wait for its controller: it is killed,
# after the tasks whose output it passes on, and the tasks that it may just have started after it.
_STAGES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("slurmctld", "slurmscriptd", "slurmd"), 1),
    ((processes.TASK,), 5),
    (("slurmstepd",), 0),
    ((processes.TASK,), 0),
    (("slurmdbd",), 1),
    (("mariadbd",), 1),
    (("munged",), 1),
)
# Job ids go on from one life of a folder's cluster to the next, so that a job of an earlier one is never mistaken for
# a job of today. Slurm's ids end at 67 million.
_IDS_PER_LIFE = 100_000
_LIVES = 600


@dataclass(frozen=True)
class Status:
    """What a cluster is doing."""

    dir: str
    running: bool
    """Whether Slurm answers."""
    slurm_conf: str
    daemons: tuple[Process, ...]
    """Those that live; slurmstepd and the processes of jobs are left out."""
    missing: tuple[str, ...]
    """Daemons that should live and do not; a slurmd by its node's name."""
    nodes: dict[str, str]
    """Slurm's state of each node; empty where Slurm does not answer."""
    jobs: dict[str, int]
    """How many jobs are in each state; elements of an array count as one each once they started."""


class Cluster:
    """A real Slurm, private to ``folder``. As a context manager it is up inside the block and gone after it."""

    def __init__(self, folder: Path, spec: Spec | None = None) -> None:
        """``spec`` None: as it was when it was last started, four nodes of four CPUs at first."""
        self.layout = Layout(folder.expanduser().resolve())
        self._asked = spec

    def __enter__(self) -> Cluster:
        """Start it."""
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop it."""
        self.down()

    @property
    def slurm_conf(self) -> Path:
        """What ``SLURM_CONF`` has to name for Slurm's commands to reach this cluster."""
        return self.layout.slurm_conf

    @property
    def spec(self) -> Spec:
        """What it was asked to be when it was started last."""
        return self._read()[0]

    def processes(self) -> list[Process]:
        """All its living processes, those of jobs included."""
        return processes.find(self.layout)

    def up(self) -> str:
        """Start what does not run, and wait until every node that was started can be given work.

        Where none of its daemons lives a new cluster begins: nothing of the one before is left, neither a stray
        process nor a job. Where some live the missing ones are started and its jobs go on. Returns a line that says
        what was done.

        Raises:
            ClusterError: Slurm is not installed, the folder is not ours, or a daemon would not start; a cluster that
                could not begin is taken down again.
        """
        self.layout.check()
        programs.require(self._asked is not None and self._asked.accounting)
        with self.locked():
            living = [process for process in self.processes() if _is_daemon(process)]
            if living:
                return self._repair()
            spec = self._asked or (self._read()[0] if self.layout.spec.exists() else Spec())
            programs.require(spec.accounting)
            self._stop()  # what jobs of a crashed cluster left running
            try:
                site = self._prepare(spec)
                self._start_missing(spec, site)
            except BaseException:
                self._stop()
                raise
            return f"{spec.nodes} nodes are up, {spec.cpus} CPUs and {spec.gpus} GPU slots each"

    def down(self) -> bool:
        """End every process of the cluster and forget its jobs; logs stay. Returns whether anything was running.

        Raises:
            ClusterError: a process outlives SIGKILL.
        """
        if not self.layout.spec.exists() and not self.processes():  # they may live where somebody removed the folder
            return False
        with self.locked():
            ran = bool(self.processes())
            self._stop()
            for path in self.layout.transient:
                if path.exists():
                    shutil.rmtree(path)
            return ran

    def status(self) -> Status:
        """What it is doing.

        Raises:
            ClusterError: its controller lives and does not answer.
        """
        living = self.processes()
        alive = {(process.kind, process.node) for process in living}
        expected = daemons.all_daemons(self.spec) if self.layout.spec.exists() else []
        missing = tuple(node or kind for kind, node in expected if (kind, node) not in alive)
        running = ("slurmctld", None) in alive and ("munged", None) in alive
        jobs: dict[str, int] = {}
        for state in programs.client(self.layout, "squeue", "-h", "-t", "all", "-o", "%T").split() if running else []:
            jobs[state] = jobs.get(state, 0) + 1
        return Status(
            dir=str(self.layout.folder),
            running=running,
            slurm_conf=str(self.slurm_conf),
            daemons=tuple(process for process in living if _is_daemon(process)),
            missing=missing,
            nodes=daemons.node_states(self.layout) if running else {},
            jobs=jobs,
        )

    def start_node(self, node: str) -> None:
        """Start the slurmd of ``node`` and wait until Slurm can give it work."""
        with self.locked():
            daemons.start_slurmd(self.layout, node)
            daemons.wait_for_nodes(self.layout, [node])

    def _repair(self) -> str:
        spec, site, _ = self._read()
        programs.require(spec.accounting)
        started = self._start_missing(spec, site)
        other = self._asked is not None and self._asked != spec
        hint = "; `down` first for one of another size" if other else ""
        done = f"started {', '.join(started)} again" if started else "it is up already"
        return f"{done} ({spec.nodes} nodes, {spec.cpus} CPUs and {spec.gpus} GPU slots each){hint}"

    def _start_missing(self, spec: Spec, site: Site) -> list[str]:
        """Start each daemon that does not live, in their order. Returns their names."""
        layout = self.layout
        starters: dict[str, Callable[[], None]] = {
            "munged": lambda: daemons.start_munged(layout),
            "mariadbd": lambda: daemons.start_mariadbd(layout),
            "slurmdbd": lambda: daemons.start_slurmdbd(layout, site),
            "slurmctld": lambda: daemons.start_slurmctld(layout, site),
        }
        alive = {(process.kind, process.node) for process in self.processes()}
        missing = [daemon for daemon in daemons.all_daemons(spec) if daemon not in alive]
        for kind, node in missing:
            if node is None:
                starters[kind]()
            else:
                daemons.start_slurmd(layout, node)
        # A new controller knows no node until its slurmd has spoken up, and refuses jobs meanwhile.
        all_nodes = ("slurmctld", None) in missing
        daemons.wait_for_nodes(layout, [n for n in spec.node_names if all_nodes or ("slurmd", n) in missing])
        return [node or kind for kind, node in missing]

    def _stop(self) -> None:
        """End all processes: first what starts others, then jobs, last what the others need."""
        for kinds, grace_s in _STAGES:
            processes.end(partial(self._of, kinds), grace_s)

    def _of(self, kinds: tuple[str, ...]) -> list[Process]:
        return [process for process in self.processes() if process.kind in kinds]

    def _prepare(self, spec: Spec) -> Site:
        """Make the folder of a new cluster; what an earlier one left in it goes."""
        layout = self.layout
        life = self._read()[2] + 1 if layout.spec.exists() else 0
        for path in (*layout.transient, layout.etc, layout.logs):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(mode=0o700 if path in (layout.state, layout.database, layout.database_tmp) else 0o755)
        slurmctld, slurmdbd, *slurmds = daemons.free_ports(2 + spec.nodes)
        first_job = life % _LIVES * _IDS_PER_LIFE + 1
        site = Site(getpass.getuser(), slurmctld, slurmdbd, tuple(slurmds), first_job)
        for node in spec.node_names:
            (layout.spool / node).mkdir()
        for gpu in render.gpu_files(spec, layout):
            Path(gpu).symlink_to(os.devnull)
        _write(layout.munge_key, os.urandom(128), private=True)
        _write(layout.slurm_conf, render.slurm_conf(spec, site, layout).encode())
        _write(layout.etc / "gres.conf", render.gres_conf(spec, layout).encode())
        if spec.accounting:
            _write(layout.etc / "slurmdbd.conf", render.slurmdbd_conf(site, layout).encode(), private=True)
        known = {"spec": dataclasses.asdict(spec), "site": dataclasses.asdict(site), "life": life}
        aside = layout.spec.with_suffix(".tmp")
        _write(aside, (json.dumps(known, indent=2) + "\n").encode())
        aside.replace(layout.spec)
        return site

    def _read(self) -> tuple[Spec, Site, int]:
        """What was asked for, what was found out, and which life of the folder's cluster this is (0 the first)."""
        path = self.layout.spec
        try:
            known: dict[str, Any] = json.loads(path.read_text())
            site = known["site"] | {"slurmd_ports": tuple(known["site"]["slurmd_ports"])}
            return Spec(**known["spec"]), Site(**site), int(known["life"])
        except FileNotFoundError:
            raise ClusterError(f"no cluster was ever started in {self.layout.folder}: python -m slurm up") from None
        except (ValueError, LookupError, TypeError) as error:
            raise ClusterError(f"{path}: cannot be read ({error}); remove the folder after `down`") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who starts or stops daemons here; another command waits until this one is done."""
        folder = self.layout.folder
        if not self.layout.lock.exists() and folder.exists() and any(folder.iterdir()):
            raise ClusterError(f"--dir {folder}: holds files that are not a cluster's; name an empty or new folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = self.layout.lock.open("a")
        except OSError as error:
            raise ClusterError(f"--dir {folder}: {error.strerror}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _is_daemon(process: Process) -> bool:
    return process.kind in daemons.KINDS


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a new file; with ``private`` nobody else may ever read it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
