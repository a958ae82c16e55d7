"""A toy task that packed members run, and a desk from which tests start and watch the workers that run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from launcher.runtime.errors import TrainingFailed, UserError
from launcher.runtime.identity import run_id
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.plan import Plan
from launcher.runtime.sections import Section, execution, halves, hashed, parse
from launcher.runtime.session import Session
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.sweepdir import write_plans as write_plans_of
from tests.conftest import REPOSITORY

Do = Literal["end", "diverge", "raise", "refuse", "kill", "kill-once", "hold", "meet", "import"]


@dataclass(frozen=True, kw_only=True)
class Member(Section):
    """How long member ``number`` trains, and what it does in step ``at``."""

    steps: int
    number: int
    do: Do = execution("end")
    at: int = execution(3)


def train(session: Session) -> None:
    """Each step it computes is a line in ``steps``; one that reaches its end leaves a line in ``finished``."""
    config: Member = session.config
    sweep = session.rundir.path.parent
    note(sweep / "processes", config.number, os.getpid(), os.getppid(), os.environ.get("OMP_NUM_THREADS"))
    model = torch.nn.Linear(2, 1)
    saved = session.restore()
    if saved is not None:
        model.load_state_dict(saved["model"])
    for step in range(session.step + 1, config.steps + 1):
        note(sweep / "steps", config.number, step)
        session.log({"train/loss": 1.0 / step}, step)
        stop = False
        if step == config.at:
            stop = _act(session, config, sweep)
        stop = session.should_stop() or stop
        session.save({"step": step, "model": model})
        if stop:
            return
    note(sweep / "finished", config.number)


def _act(session: Session, config: Member, sweep: Path) -> bool:
    """Returns whether it was asked to stop."""
    if config.do == "diverge":
        raise TrainingFailed(f"step {config.at}: the loss is nan; lower optim.lr")
    if config.do == "refuse":
        raise UserError("data.path=x: no such file")
    if config.do == "raise":
        raise ZeroDivisionError("oh")
    if config.do == "import":
        known = "tabnanny" in sys.modules
        import tabnanny

        note(sweep / "imports", config.number, known, tabnanny.__name__)
    if config.do == "kill" or (config.do == "kill-once" and not (sweep / f"killed.{config.number}").exists()):
        session.settle()  # what was saved is on disk
        (sweep / f"killed.{config.number}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.do in ("hold", "meet"):
        (sweep / f"holding.{config.number}").touch()
        there = 2 if config.do == "meet" else 10**6
        while not (sweep / "go").exists() and len(list(sweep.glob("holding.*"))) < there:
            if session.should_stop():
                return True
            time.sleep(0.01)
    return False


def note(path: Path, *words: object) -> None:
    """A line in a file to which many processes append."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (json.dumps(words) + "\n").encode())
    os.close(descriptor)


def member_plan(folder: Path, number: int, **changes: Any) -> Plan:
    """A plan of member ``number``; ``device`` and ``requeue`` are those of its execution."""
    device, requeue = changes.pop("device", "cpu"), changes.pop("requeue", {})
    config = parse(Member, {"steps": 5, "number": number} | changes)
    science, other = halves(config)
    return Plan(
        run_id=run_id(hashed(config)),
        name="toys",
        root=str(folder / "runs"),
        target=f"{__name__}:train",
        schema=f"{__name__}:Member",
        science=science,
        execution={
            "task": other,
            "checkpoint": {"every_steps": 1, "keep_last": 99, "keep_every": None, "at_end": "state", "best": False},
            "tracker": {"csv": True, "curves": False},
            "hardware": {"device": device, "micro_batch": None, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1},
            "requeue": requeue,
        },
    )


class Bench:
    """A submission of packed members in ``folder``, its queue, and its workers: ``leave`` ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep = SweepDir(folder / "runs" / "toys")
        self.file = self.sweep.plans("t1")
        self.queue = Queue(self.sweep.queue("t1"))
        self.plans: list[Plan] = []
        self._workers: list[subprocess.Popen[str]] = []

    def submit(self, *members: Mapping[str, Any] | str) -> None:
        """Write plans and queue; a word stands for ``{"do": word}``."""
        asked = [{"do": member} if isinstance(member, str) else dict(member) for member in members]
        self.plans = [member_plan(self.folder, number, **one) for number, one in enumerate(asked)]
        write_plans_of(self.file, (plan.to_json() for plan in self.plans))
        self.queue.fill(entry_name(i) for i in range(len(self.plans)))

    def start(self, *options: str, job: str | None = "w1", restarts: int = 0, **env: str) -> subprocess.Popen[str]:
        """A worker of a local queue, in a process group of its own; ``job`` None: one that was started by hand."""
        strange = ("SLURM", "SUBMITIT", "OMP", "TORCHELASTIC", "CUDA", "SEEMORE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(strange)}
        here = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/launcher/plugin"} | env
        if job is not None:
            place = {"JOB_ID": job, "NTASKS": "1", "GLOBALID": "0", "LOCALID": "0"}
            here |= {f"SUBMITIT_LOCAL_{k}": v for k, v in place.items()} | {"SEEMORE_LOCAL_RESTARTS": str(restarts)}
        words = [sys.executable, "-uP", "-m", "launcher.runtime.pack.worker", str(self.file), *options]
        worker = subprocess.Popen(
            words, env=kept | here, cwd="/", stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._workers.append(worker)
        return worker

    def end(self, worker: subprocess.Popen[str], timeout_s: float = 60) -> tuple[int, str]:
        """Exit code and what it said."""
        _, said = worker.communicate(timeout=timeout_s)
        return worker.returncode, said

    def leave(self) -> None:
        """Kill what still lives."""
        for worker in self._workers:
            with suppress(ProcessLookupError):  # its members may outlive it
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            if worker.stderr:
                worker.stderr.close()

    def lines(self, name: str) -> list[list[Any]]:
        """What the members noted."""
        path = self.sweep.path / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def states(self) -> list[str | None]:
        return [plan.rundir.state() for plan in self.plans]

    def reason(self, number: int) -> str:
        return str(self.plans[number].rundir.read_status().get("reason"))

    def events(self, number: int, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.plans[number].rundir.attempt_events() if event["event"] == kind]

    def steps(self, number: int) -> Counter[int]:
        """How often it computed each step."""
        return Counter(step for one, step in self.lines("steps") if one == number)

    def finished(self) -> list[int]:
        """Numbers of the members that reached their end, sorted; one that did so twice is there twice."""
        return sorted(number for (number,) in self.lines("finished"))

    def process(self, number: int) -> tuple[int, int]:
        """Process id of the newest process of a member, and of its parent."""
        return next((pid, parent) for one, pid, parent, _ in reversed(self.lines("processes")) if one == number)

    def wait_holding(self, *numbers: int) -> None:
        """Until these stand in the step in which they are held."""
        until(lambda: all((self.sweep.path / f"holding.{number}").exists() for number in numbers))

    def go(self) -> None:
        """Hold none any more."""
        (self.sweep.path / "go").touch()


def until(event: Callable[[], object], seconds: float = 60) -> None:
    """Wait for ``event``."""
    deadline = time.monotonic() + seconds
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.01)
