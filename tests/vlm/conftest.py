"""Training runs without the command line."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as multiprocessing

from launcher.plan import make_plan
from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.job import Outcome, run_job
from launcher.runtime.plan import Plan
from launcher.runtime.session import Session
from launcher.runtime.signals import StopFlag
from tests.conftest import SMALL
from vlm import task
from vlm.trainer import Trainer


@pytest.fixture
def plan(values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Plan]:
    """``plan("optim.lr=1", …)``: a plan of the small run, fp32 and with the csv tracker only."""

    def made(*overrides: str) -> Plan:
        whole = values(*SMALL, "precision=fp32", "tracker=csv", *overrides)
        return make_plan(whole, default_name="sweep", cwd=tmp_path)

    return made


@pytest.fixture
def train(plan: Callable[..., Plan]) -> Callable[..., tuple[Plan, Outcome]]:
    """``train("optim.lr=1", …)``: the small run, run here."""

    def run(*overrides: str) -> tuple[Plan, Outcome]:
        made = plan(*overrides)
        return made, run_job(made, {}, StopFlag())

    return run


def train_and_sum(session: Session) -> dict[str, Any]:
    """The task itself; after it every rank leaves the hash of the weights that it holds."""
    trained: dict[str, Any] = {}

    class Kept(Trainer):
        def run(self) -> None:
            super().run()
            trained["sum"] = weights_sha256(self.model.state_dict())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "Trainer", Kept)
        extra = task.train(session)
    (session.rundir.path / f"sum{session.world.rank}").write_text(trained["sum"])
    return extra


def run_ranks(plan: Plan, size: int) -> None:
    """Run ``plan`` as ``size`` processes on gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_rank, (plan, size, port), nprocs=size)


def _rank(rank: int, plan: Plan, size: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    run_job(plan, {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}, StopFlag())
