"""The five daemons of a cluster, each started by one function that returns when the daemon does its work."""

from __future__ import annotations

import errno
import getpass
import os
import random
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from slurm import programs
from slurm.errors import ClusterError
from slurm.layout import Layout
from slurm.processes import DAEMON_MARK, NODE_MARK, find, wait_until
from slurm.render import CLUSTER_NAME, Site, Spec

ACCOUNT = "lab"
"""The account that a cluster with accounting begins with; whoever starts the cluster is in it."""
START_TIMEOUT_S = 60.0
"""Longest wait for one daemon."""

KINDS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
"""Kinds of daemons, in the order of their start."""
_PORTS = range(20_000, 32_000)
_READY = ("idle", "mixed", "allocated", "completing")


def start_munged(layout: Layout) -> None:
    """Start munged with a key of its own.

    ``--force``: it refuses a home folder that others may not enter (its socket would be out of their reach) or that a
    group may write to; this cluster is one user's, and the key can be read by this user alone. Root may run it.
    """
    layout.munge_socket.unlink(missing_ok=True)
    _start(
        layout, "munged", "--force", f"--key-file={layout.munge_key}", f"--socket={layout.munge_socket}",
        f"--pid-file={layout.pid_file('munged')}", f"--log-file={layout.log('munged')}",
        f"--seed-file={layout.munge / 'munged.seed'}", "--origin=127.0.0.1",
    )  # fmt: skip
    _wait_for(layout, "munged", lambda: _listens(layout.munge_socket))


def start_mariadbd(layout: Layout) -> None:
    """Start MariaDB on a socket without a port; its folder, which nobody else may enter, is its protection."""
    user = f"--user={getpass.getuser()}"
    data = f"--datadir={layout.database}"
    if not any(layout.database.iterdir()):
        installer = programs.locate("mariadb-install-db") or "mariadb-install-db"
        words = [installer, "--no-defaults", user, data, "--skip-test-db", "--auth-root-authentication-method=normal"]
        _run(layout, "mariadbd", [*programs.clean_environment(layout, TMPDIR=str(layout.database_tmp)), *words])
    layout.database_socket.unlink(missing_ok=True)
    _start(
        layout, "mariadbd", "--no-defaults", user, data, f"--socket={layout.database_socket}", "--skip-networking",
        f"--tmpdir={layout.database_tmp}",
        f"--pid-file={layout.pid_file('mariadbd')}", f"--log-error={layout.log('mariadbd')}", "--skip-log-bin",
        # Disposable: no wait for the disk at each commit. The other two are what slurmdbd asks for.
        "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=128M", "--innodb-lock-wait-timeout=900",
        foreground=True,
    )  # fmt: skip
    _wait_for(layout, "mariadbd", lambda: _listens(layout.database_socket))


def start_slurmdbd(layout: Layout, site: Site) -> None:
    """Start slurmdbd, and make the cluster, an account and its user known to it."""
    _start(layout, "slurmdbd", MYSQL_UNIX_PORT=str(layout.database_socket))
    _wait_for(layout, "slurmdbd", lambda: _answers(site.slurmdbd_port))
    known = programs.client(layout, "sacctmgr", "-nP", "show", "cluster", "format=cluster")
    if CLUSTER_NAME not in known.split():
        about = (f"Description={ACCOUNT}", f"Organization={ACCOUNT}")
        programs.client(layout, "sacctmgr", "-i", "add", "cluster", CLUSTER_NAME)
        programs.client(layout, "sacctmgr", "-i", "add", "account", ACCOUNT, *about)
        who = (site.user, f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}", "AdminLevel=Admin")
        programs.client(layout, "sacctmgr", "-i", "add", "user", *who)


def start_slurmctld(layout: Layout, site: Site) -> None:
    """Start the controller; what it saved, if anything, it takes up again."""
    _start(layout, "slurmctld", "-f", str(layout.slurm_conf))
    _wait_for(layout, "slurmctld", lambda: _answers(site.slurmctld_port))


def start_slurmd(layout: Layout, node: str) -> None:
    """Start the slurmd of ``node``. ``wait_for_nodes`` tells when Slurm counts on it."""
    _start(layout, "slurmd", "-N", node, "-f", str(layout.slurm_conf), node=node)


def wait_for_nodes(layout: Layout, nodes: Sequence[str]) -> None:
    """Wait until Slurm can give work to all of ``nodes``.

    Raises:
        ClusterError: it cannot within a minute, or a slurmd has died; with the last lines of the log that tells why.
    """
    states: dict[str, str] = {}

    def ready() -> bool:
        for node in nodes:
            _require_alive(layout, "slurmd", node)
        states.update(node_states(layout))
        return all(states.get(node) in _READY for node in nodes)

    if not wait_until(ready, START_TIMEOUT_S):
        told = ", ".join(f"{node} is {states.get(node)}" for node in nodes if states.get(node) not in _READY)
        raise ClusterError(f"nodes not ready within {START_TIMEOUT_S:g} s: {told}" + _controller_log(layout))


def node_states(layout: Layout) -> dict[str, str]:
    """Slurm's state of each node, as sinfo words it: ``idle``, ``mixed``, ``down*`` (``*``: it does not answer)."""
    listed = programs.client(layout, "sinfo", "-hN", "-p", "low", "-o", "%N %T")
    return dict(line.split() for line in listed.splitlines())


def _controller_log(layout: Layout) -> str:
    return programs.last_lines(layout.log("slurmctld"))


def _start(
    layout: Layout, daemon: str, *words: str, node: str | None = None, foreground: bool = False, **environment: str
) -> None:
    """Start a daemon that goes to the background by itself, or with ``foreground`` one that does not."""
    marks = {DAEMON_MARK: daemon} | ({NODE_MARK: node} if node else {})
    detach = [programs.locate("setsid") or "setsid", "--fork"] if foreground else []
    program = programs.locate(daemon) or daemon
    command = [*programs.clean_environment(layout, **environment, **marks), *detach, program, *words]
    _run(layout, node or daemon, command)


def _run(layout: Layout, log: str, command: list[str]) -> None:
    """Run ``command``, which ends at once or leaves a daemon behind; what it says goes to the daemon's log."""
    path = layout.log(log)
    with path.open("ab") as file:
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=START_TIMEOUT_S, check=False
        )
    if done.returncode:
        raise ClusterError(f"{log} would not start (exit code {done.returncode}){programs.last_lines(path)}")


def _wait_for(layout: Layout, daemon: str, event: Callable[[], bool]) -> None:
    """Wait for ``event`` as long as ``daemon`` lives."""

    def came() -> bool:
        if event():
            return True
        _require_alive(layout, daemon)
        return False

    if not wait_until(came, START_TIMEOUT_S):
        log = programs.last_lines(layout.log(daemon))
        raise ClusterError(f"{daemon} does not answer within {START_TIMEOUT_S:g} s{log}")


def _require_alive(layout: Layout, daemon: str, node: str | None = None) -> None:
    def alive() -> bool:
        return any((process.kind, process.node) == (daemon, node) for process in find(layout))

    if not wait_until(alive, 1):  # not at the first look: a daemon forks twice on its way to the background
        raise ClusterError(f"{daemon} ended{programs.last_lines(layout.log(node or daemon))}")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """``count`` ports that are free now, below those that the kernel gives to outgoing connections (ip(7)).

    Drawn at random, so that two clusters that start at once do not meet.

    Raises:
        ClusterError: there are not so many.
    """
    with ExitStack() as held:  # all at once: no port is found twice
        ports: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                break
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            ports.append(port)
    if len(ports) < count:
        raise ClusterError(f"only {len(ports)} of {count} ports are free from {_PORTS.start} to {_PORTS.stop - 1}")
    return ports


def all_daemons(spec: Spec) -> list[tuple[str, str | None]]:
    """Kind and node of every daemon that a whole cluster has, in the order of their start."""
    accounting: list[tuple[str, str | None]] = [("mariadbd", None), ("slurmdbd", None)] if spec.accounting else []
    return [("munged", None), *accounting, ("slurmctld", None), *(("slurmd", node) for node in spec.node_names)]
