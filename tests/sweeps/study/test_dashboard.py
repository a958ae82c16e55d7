"""optuna-dashboard opens a study by the command that is printed."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from slurm.processes import wait_until
from sweeps.study.show import dashboard
from tests.sweeps.study.lab import definition, made, work

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_the_dashboard_lists_the_study(tmp_path: Path, storage: str):
    what = definition(tmp_path, n_trials=3, storage=storage)
    folder = made(tmp_path, what)
    work(folder)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    program, *words = shlex.split(dashboard(folder, what))
    door = [str(Path(sys.executable).parent / program), *words, "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen(door, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(lambda: listens(port), 60)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30) as answer:
                (study,) = json.load(answer)["study_summaries"]
        finally:
            process.terminate()
    assert study["study_name"] == "toys" and study["directions"] == ["minimize"]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
