"""Where everything of one cluster lies: the only owner of file names below its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slurm.errors import ClusterError

# sockaddr_un holds 108 bytes (unix(7)). The longest socket of a cluster is slurmstepd's, below spool/:
# n9999/n9999_4294967295.4294967295 and its end.
_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET = "/spool/n9999/n9999_4294967295.4294967295"


@dataclass(frozen=True)
class Layout:
    """The names below ``folder``, the private folder of one cluster (absolute, links resolved)."""

    folder: Path

    def check(self) -> None:
        """See that sockets fit below the folder and that Slurm can read its name in a configuration file.

        Raises:
            ClusterError: the name is too long, or holds a character that means something to Slurm.
        """
        room = _SOCKET_PATH_MAX - len(_LONGEST_SOCKET)
        if len(str(self.folder).encode()) > room:
            raise ClusterError(f"--dir {self.folder}: longer than {room} bytes, too long for the sockets below it")
        strange = sorted(set(str(self.folder)) & set(" \t\n\"'#%,=[]\\"))
        if strange or not str(self.folder).isprintable():
            raise ClusterError(f"--dir {str(self.folder)!r}: Slurm cannot read {strange} in a path; choose another")

    @property
    def spec(self) -> Path:
        """What the cluster was asked to be, as JSON; the mark by which a folder is known as ours."""
        return self.folder / "cluster.json"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops daemons here."""
        return self.folder / "lock"

    @property
    def etc(self) -> Path:
        """Configuration files."""
        return self.folder / "etc"

    @property
    def slurm_conf(self) -> Path:
        """What ``SLURM_CONF`` names. Slurm looks for its other files beside it."""
        return self.etc / "slurm.conf"

    @property
    def munge(self) -> Path:
        """munged's key, socket and seed."""
        return self.folder / "munge"

    @property
    def munge_key(self) -> Path:
        """The secret that all daemons and clients of this cluster share."""
        return self.munge / "munge.key"

    @property
    def munge_socket(self) -> Path:
        """Where munged listens."""
        return self.munge / "munge.socket"

    @property
    def state(self) -> Path:
        """slurmctld's saved state: jobs, nodes, partitions."""
        return self.folder / "state"

    @property
    def spool(self) -> Path:
        """A folder for each node's slurmd: job scripts, credentials, sockets of its slurmstepd."""
        return self.folder / "spool"

    @property
    def gpus(self) -> Path:
        """Links that stand for GPU slots."""
        return self.folder / "gpus"

    @property
    def database(self) -> Path:
        """MariaDB's data."""
        return self.folder / "database"

    @property
    def database_socket(self) -> Path:
        """Where MariaDB listens; it opens no port."""
        return self.folder / "database" / "mariadb.socket"

    @property
    def database_tmp(self) -> Path:
        """MariaDB's temporary tables; in ``/tmp`` a server that starts would sweep away those of another."""
        return self.folder / "database-tmp"

    @property
    def run(self) -> Path:
        """Files with the daemons' process ids."""
        return self.folder / "run"

    @property
    def logs(self) -> Path:
        """A log for each daemon; they stay after ``down``."""
        return self.folder / "log"

    def log(self, daemon: str) -> Path:
        """Log of ``daemon``: ``munged``, ``mariadbd``, ``slurmdbd``, ``slurmctld``, or a node's name."""
        return self.logs / f"{daemon}.log"

    def pid_file(self, daemon: str) -> Path:
        """Process id of ``daemon``, as it wrote it itself."""
        return self.run / f"{daemon}.pid"

    @property
    def transient(self) -> tuple[Path, ...]:
        """What goes with ``down``. Configuration and logs stay: they tell how it ended."""
        return (self.munge, self.state, self.spool, self.gpus, self.database, self.database_tmp, self.run)
