"""A real cluster for the tests that need one; where Slurm is not installed they are skipped, and say so."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm import programs
from slurm.cluster import Cluster
from slurm.errors import ClusterError
from slurm.render import Spec

Client = Callable[..., str]


@pytest.fixture(scope="session")
def slurm_installed(pytestconfig: pytest.Config) -> None:
    """Skip without Slurm, MariaDB included; with ``--require-slurm`` fail."""
    try:
        programs.require(accounting=True)
    except ClusterError as error:
        if pytestconfig.getoption("require_slurm"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def folders() -> Iterator[Callable[[], Path]]:
    """``folders()``: a new folder for a cluster, which is down at the end whatever its test did.

    pytest's own folders have names too long for the sockets below them.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-") as root:
        made: list[Path] = []

        def new() -> Path:
            made.append(Path(root) / f"c{len(made)}")
            return made[-1]

        yield new
        for folder in made:
            Cluster(folder).down()


@pytest.fixture(scope="session")
def cluster(slurm_installed: None, folders: Callable[[], Path]) -> Iterator[Cluster]:
    """Four nodes with accounting, shared by all tests of a process; whoever breaks a node mends it."""
    with Cluster(folders(), Spec(accounting=True)) as running:
        yield running


def client_of(cluster: Cluster, cwd: Path) -> Client:
    """``client("sbatch", …)``: what a command of Slurm prints, called as a user of ``cluster`` would, in ``cwd``."""

    def run(*words: str, timeout: float = 60) -> str:
        env = os.environ | {"SLURM_CONF": str(cluster.slurm_conf)}
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def client(cluster: Cluster, tmp_path: Path) -> Client:
    """A user of the shared cluster."""
    return client_of(cluster, tmp_path)
