"""Slurm's programs: found, and called with an environment of their own and a time limit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from slurm.errors import ClusterError
from slurm.layout import Layout

INSTALL = "apt-get install slurm-wlm slurmdbd munge mariadb-server"
_CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue")
_DAEMONS = ("munged", "slurmctld", "slurmd")
_ACCOUNTING = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr")

# Where administrators' programs lie; an ordinary user's PATH often leaves these out.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_PATH = f"/usr/local/bin:/usr/bin:/bin:{_SBIN}"

CLIENT_TIMEOUT_S = 20.0
"""Longest wait for one client command: clients hang where nodes or the controller are in trouble."""


def require(accounting: bool) -> None:
    """See that all programs are here that a cluster needs.

    Raises:
        ClusterError: one is missing; the message says how to install it.
    """
    missing = [name for name in _CLIENTS if shutil.which(name) is None]
    missing += [name for name in (*_DAEMONS, *(_ACCOUNTING if accounting else ())) if locate(name) is None]
    if missing:
        raise ClusterError(f"Slurm is not installed ({', '.join(missing)} not found): {INSTALL}")


def locate(name: str) -> str | None:
    """Path of a daemon or client, on PATH or where administrators' programs lie."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def clean_environment(layout: Layout, **more: str) -> list[str]:
    """Words to put before a command: nothing of ours reaches it, neither SBATCH_ variables nor another SLURM_CONF.

    Daemons put their title over the beginning of their environment, so what has to stay legible stands at its end.
    """
    values = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(layout.folder), **more, "SLURM_CONF": layout.slurm_conf}
    return ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in values.items())]


def client(layout: Layout, *words: str, timeout_s: float = CLIENT_TIMEOUT_S) -> str:
    """What a client command of Slurm prints.

    Raises:
        ClusterError: the command fails, or is not done within ``timeout_s`` seconds.
    """
    command = [*clean_environment(layout), *words]
    try:
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{words[0]}: no answer within {timeout_s:g} s; see {layout.log('slurmctld')}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ClusterError(f"{' '.join(words[:3])}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def last_lines(path: Path, count: int = 8) -> str:
    """The end of a log, indented, to stand below an error."""
    lines = path.read_text(errors="replace").splitlines()[-count:] if path.exists() else []
    return "".join(f"\n  {path.name}: {line}" for line in lines)
