"""A user with a small repository of their own, who submits to a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.cluster import Cluster
from slurm.processes import wait_until

# A task that writes down what it was given; it knows the session and nothing else. ``data.*`` and the rest of the
# built-in task's config come along unread.
TASK = """
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.runtime.errors import UserError
from launcher.runtime.sections import Section, execution

WORD = "first"


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    optim: dict[str, Any]
    trainer: dict[str, Any]
    model: dict[str, Any] = execution()
    data: dict[str, Any] = execution()
    tokenizer: dict[str, Any] = execution()
    schedule: dict[str, Any] = execution()
    precision: dict[str, Any] = execution()


def train(session):
    config = session.config
    step = int((session.restore() or {"step": 0})["step"])
    said = session.rundir.path / f"said.{session.world.rank}"
    while step < config.trainer["max_steps"]:
        step += 1
        with said.open("a") as file:
            print(step, WORD, config.optim["lr"], os.environ.get("SLURM_RESTART_COUNT", "0"), __file__, file=file)
        if config.trainer["seed"] == 666:
            raise UserError("seed 666: brings bad luck")
        if config.trainer["seed"] == 13:
            raise RuntimeError("unlucky")
        if config.trainer["seed"] == 9 and step == 2 and "SLURM_RESTART_COUNT" not in os.environ:
            session.settle()  # what the first step left is on disk
            os.kill(os.getpid(), signal.SIGKILL)
        session.log({"train/loss": 1.0 / step}, step)
        while step == 2 and not (Path(session.rundir.path).parent / "go").exists() and not session.should_stop():
            time.sleep(0.02)
        session.save({"step": step, "model": torch.nn.Linear(1, 1)})
        if session.should_stop():
            return
"""
BASE = ("task.target=toytask:train", "task.schema=toytask:Config", "site=disposable", "site.slurm_conf=null",
        "tracker=csv", "trainer.max_steps=3", "launch.name=sweep", "checkpoint.every_steps=1")  # fmt: skip


_IMPORTED = tempfile.TemporaryDirectory(prefix="imported-")


@dataclass
class User:
    """Types commands in a git repository that holds ``toytask.py``; runs go below it."""

    cluster: Cluster
    home: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "toytask.py").write_text(TASK)
        (self.home / ".gitignore").write_text("runs/\n__pycache__/\ncache/\n")
        imported = self.home / "cache" / "seemore" / "imported"
        imported.parent.mkdir(parents=True, exist_ok=True)
        imported.symlink_to(_IMPORTED.name)  # the same code was tried for another user already
        for words in (
            ("init", "-q"),
            ("add", "."),
            ("-c", "user.name=u", "-c", "user.email=e", "commit", "-qm", "one"),
        ):
            subprocess.run(["git", "-C", str(self.home), *words], check=True)

    @property
    def sweep(self) -> Path:
        """The one sweep."""
        return self.home / "runs" / "sweep"

    def start(self, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """``python -m <words>``, typed in ``cwd`` or at home, going on."""
        cache = str(self.home / "cache")
        given = {"SLURM_CONF": str(self.cluster.slurm_conf), "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
        env = os.environ | given | self.env
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", *words], cwd=cwd or self.home, env=env, **pipes)

    def type(self, *words: str, timeout: float = 120, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """``python -m <words>`` to its end."""
        process = self.start(*words, cwd=cwd)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def submit(self, *overrides: str, single: bool = False, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """``python -m launcher.run -m hydra/launcher=submitit_slurm`` with the toy task."""
        flag = () if single else ("-m",)
        done = self.type("launcher.run", *flag, "hydra/launcher=submitit_slurm", *BASE, *overrides)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def runs(self) -> dict[str, dict[str, Any]]:
        """status.json of each run by id; empty for one that has none yet."""
        plans = sorted(self.sweep.glob("*/plan.json"))
        return {p.parent.name: _read(p.with_name("status.json")) for p in plans}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of ``submissions.jsonl``."""
        path = self.sweep / "submissions.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def job_ids(self) -> list[str]:
        """Slurm's ids of all submissions, oldest first."""
        return [event["job_id"] for event in self.events("submitted")]

    def let_go(self) -> None:
        """Let every toy run go past its second step."""
        (self.sweep / "go").touch()

    def wait(self, states: Sequence[str] = ("COMPLETED",), count: int = 1, seconds: float = 60) -> None:
        """Until ``count`` runs are in one of ``states``."""
        reached = wait_until(lambda: sum(r.get("state") in states for r in self.runs().values()) >= count, seconds)
        assert reached is not False, f"{self.runs()}"

    def said(self) -> list[list[str]]:
        """What rank 0 of the runs wrote, line by line, as words."""
        return [line.split() for path in self.sweep.glob("*/said.0") for line in path.read_text().splitlines()]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
