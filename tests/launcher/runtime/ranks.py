"""A toy task for several real processes, and how tests start it: through the worker, as a launcher would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.distributed import sum_over_ranks
from launcher.runtime.identity import run_id
from launcher.runtime.plan import Plan
from launcher.runtime.sections import Section, execution, halves, hashed, parse
from launcher.runtime.session import Session
from tests.conftest import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class Toy(Section):
    """How long it trains, and what becomes of rank ``victim`` after step ``at``."""

    steps: int
    end: Literal["well", "raise", "kill", "stop"] = execution("well")
    victim: int = execution(1)
    at: int = execution(3)


def train(session: Session) -> None:
    """A loop in which every step needs every rank."""
    config: Toy = session.config
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    saved = session.restore()
    if saved is not None:
        model.load_state_dict(saved["model"])
    for step in range(session.step + 1, config.steps + 1):
        with torch.no_grad():
            model.weight.add_(sum_over_ranks(torch.full((1, 4), 1.0 + session.world.rank)), alpha=-0.01)
        session.log({"train/loss": float(model.weight.detach().sum())}, step)
        if step == config.at and session.world.rank == config.victim:
            _end(config.end)
        stop = session.should_stop()
        session.save({"step": step, "model": model})
        if stop:
            break
    digest = weights_sha256(model.state_dict())
    (session.rundir.path / f"sum{session.world.rank}").write_text(f"{session.step} {digest}")


def _end(how: str) -> None:
    if how == "raise":
        raise ZeroDivisionError("oh")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGUSR2)


def toy_plan(folder: Path, nodes: int = 1, tasks_per_node: int = 2, **changes: object) -> Plan:
    """A plan of the toy that stands below ``folder``."""
    config = parse(Toy, {"steps": 6} | changes)
    science, other = halves(config)
    hardware = {"device": "cpu", "micro_batch": None, "cpus_per_task": 1}
    return Plan(
        run_id=run_id(hashed(config)),
        name="toys",
        root=str(folder / "runs"),
        target=f"{__name__}:train",
        schema=f"{__name__}:Toy",
        science=science,
        execution={
            "task": other,
            "checkpoint": {"every_steps": 2, "keep_last": 2, "keep_every": None, "at_end": "state", "best": True},
            "tracker": {"csv": True},
            "hardware": hardware | {"nodes": nodes, "tasks_per_node": tasks_per_node},
        },
    )


def write_plans(folder: Path, *plans: Plan) -> Path:
    """The file that a worker reads."""
    path = folder / "plans.jsonl"
    path.write_text("".join(json.dumps(plan.to_json()) + "\n" for plan in plans))
    return path


def queue_env(rank: int, size: int, job: str = "q1") -> dict[str, str]:
    """What a local queue tells a rank."""
    names = {"JOB_ID": job, "NTASKS": size, "GLOBALID": rank, "LOCALID": rank}
    return {f"SUBMITIT_LOCAL_{name}": str(value) for name, value in names.items()}


def slurm_env(rank: int, size: int, nodes: int = 1, job: str = "17", **more: str) -> dict[str, str]:
    """What srun tells a rank of a step."""
    per_node = size // nodes
    return {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(size),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
        "SLURM_STEP_NUM_NODES": str(nodes),
    } | more


def start(plans: Path, env: Mapping[str, str], *options: str) -> subprocess.Popen[str]:
    """A worker that runs, with a clean environment but for ``env``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SUBMITIT", "OMP", "TORCHELASTIC"))}
    words = [sys.executable, "-uP", "-m", "launcher.runtime.worker", str(plans), *options]
    whole = kept | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/launcher/plugin"} | dict(env)
    return subprocess.Popen(words, env=whole, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ends(*workers: subprocess.Popen[str], timeout_s: float = 60) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none is left behind."""
    try:
        texts = [worker.communicate(timeout=timeout_s) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, *text) for worker, text in zip(workers, texts, strict=True)]
