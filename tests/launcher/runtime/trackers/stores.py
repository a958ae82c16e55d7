"""Runs to be recorded, and MLflow asked what it has of them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from launcher.runtime.rundir import RunDir
from launcher.runtime.trackers import About
from launcher.runtime.trackers.csv_files import CsvFiles
from launcher.runtime.trackers.mlflow_store import Place, open_client

CONFIG = {"optim": {"lr": 0.5, "kind": "adamw"}, "flip": True, "sizes": [1, 2], "note": None, "long": "x" * 7000}
SUMMARY = {"status": "COMPLETED", "step": 4, "train_loss": 2.0, "val_loss": 1.5, "best_val_loss": None}


def about(path: Path, step: int = 0, **labels: str) -> About:
    """A run in the folder ``path``, claimed and RUNNING."""
    rundir = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    rundir.config.write_text("optim: {lr: 0.5}\n")
    rundir.write_status(state="RUNNING")
    return About(rundir, CONFIG, CONFIG, step, {"target": "vlm.task:train", "git_sha": "a" * 40} | labels)


def write_ledger(rundir: RunDir, steps: Any, step: int = 0) -> None:
    """``metrics.csv`` with a loss for each of ``steps``."""
    csv = CsvFiles(rundir, step, curves=False)
    for at in steps:
        csv.log({"train/loss": float(at)}, at)
    csv.finish({})


def losses(place: Place, run: str, key: str = "train/loss") -> list[tuple[int, float]]:
    """Step and value of each loss that MLflow has, in order."""
    return sorted((m.step, m.value) for m in open_client(place).get_metric_history(run, key))


def run_of(place: Place, rundir: RunDir) -> Any:
    """MLflow's run of ``rundir``, found by its tag; the only one."""
    client = open_client(place)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.run_id = '{rundir.path.name}'")
    return run


def artifacts(place: Place, run: str, path: str | None = None) -> set[str]:
    """Names of the files that MLflow has of ``run``."""
    return {file.path for file in open_client(place).list_artifacts(run, path)}


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int = 0) -> Iterator[str]:
    """A real ``mlflow server``, the light way; its address. Its port is free again when this ends."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/files"]
    words = ["-m", "mlflow", "server", "--workers", "1", "--port", str(port), *store]
    light = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=log, stderr=log, env=os.environ | light, start_new_session=True
        )
        try:
            _await_health(process, f"{address}/health", folder / "server.log")
            yield address
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


def _await_health(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ended = threading.Event()
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        away = contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError)
        with away, urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        ended.wait(0.1)
    raise TimeoutError(log.read_text())


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """A server that takes every request and never answers; its address, and an event: it was asked."""
    asked, over = threading.Event(), threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            over.wait(600)

        do_POST = do_GET

        def log_message(self, *words: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
