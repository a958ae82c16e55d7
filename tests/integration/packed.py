"""Packed sweeps of ``exact_task`` on a real cluster: their runs, their workers, and how often each run was finished."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.processes import wait_until
from tests.integration.lab import BASE, Lab, Run, environment

TASK = """
import os

import exact_task

Config = exact_task.Config


def train(session):
    said = exact_task.train(session)
    if session.step == session.config.trainer["max_steps"] and not session.stopping:  # else the next attempt ends it
        line = f"{session.rundir.path.name}\\n".encode()
        file = os.open(session.rundir.path.parent / "finished", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line)
        os.close(file)
    return said
"""
WORDS = ("hydra/launcher=submitit_slurm", *BASE, "task.target=packtask:train", "task.schema=packtask:Config")


class PackLab(Lab):
    """A user whose task appends a line to ``<sweep>/finished`` at its very end."""

    def __post_init__(self) -> None:
        """Put the task where jobs import it from."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "packtask.py").write_text(TASK)
        super().__post_init__()

    def sweep_of(self, name: str, *words: str) -> Packed:
        """Submit a packed sweep, or the same command once more."""
        done = self.type("launcher.run", "-m", *WORDS, *words, f"launch.name={name}")
        assert done.returncode == 0, done.stdout + done.stderr
        return Packed(self, self.home / "runs" / name)


@dataclass
class Packed:
    """A sweep whose runs share jobs."""

    lab: PackLab
    path: Path

    @property
    def jobs(self) -> list[str]:
        """Slurm's names of the workers of the newest submission."""
        events = [json.loads(line) for line in (self.path / "submissions.jsonl").read_text().splitlines()]
        asked = [event for event in events if event["event"] == "intent"][-1]
        number = [event for event in events if event["event"] == "submitted"][-1]["job_id"]
        count = asked["workers"]
        return [f"{number}_{i}" for i in range(count)] if count > 1 else [number]

    @property
    def runs(self) -> list[Run]:
        """In no order that matters; ``job`` is the worker that has begun with a run last."""
        found = [Run(self.lab, plan.parent, "") for plan in sorted(self.path.glob("*/plan.json"))]
        for run in found:
            run.job = run.events("start")[-1]["job_id"] if run.events("start") else ""
        return found

    def states(self) -> Counter[str]:
        """How many runs say that they are in which state."""
        return Counter(run.state for run in self.runs)

    def wait(self, holds: Any, seconds: float = 180) -> None:
        """Until ``holds``; fails with all that is known of the sweep if it never does."""
        assert wait_until(holds, seconds) is not False, self.story()

    def wait_done(self, seconds: float = 240) -> None:
        """Until each run is COMPLETED; each has been finished once, and so has each task's own word of it.

        A process that is killed between its task's last line and its own last word has the end done again: only as
        often as attempts were cut off may a task have written its line once more.
        """
        count = len(self.runs)
        self.wait(lambda: self.states()["COMPLETED"] == count, seconds)
        self.wait(lambda: not self.members())  # a run's end is written down after its state
        told = self.finished()
        for run in self.runs:
            starts, ends = run.events("start"), run.events("end")
            done = sum(end["code"] == 0 for end in ends)
            assert done == 1 or (done == 0 and len(ends) < len(starts)), self.story(run)
            assert 1 <= told[run.path.name] <= 1 + len(starts) - len(ends), self.story(run)

    def finished(self) -> Counter[str]:
        """How often each run was trained to its end."""
        file = self.path / "finished"
        return Counter(file.read_text().split() if file.exists() else [])

    def wait_training(self, count: int, step: int = 3) -> list[Run]:
        """Until so many runs train and have done some steps; returns those."""

        def training() -> list[Run]:
            return [run for run in self.runs if run.state == "RUNNING" and run.step >= step]

        self.wait(lambda: len(training()) >= count)
        return training()

    def processes(self, job: str | None = None) -> list[tuple[int, int]]:
        """Process and parent of workers and members that live; of ``job`` alone."""
        found = []
        for process in self.lab.cluster.processes():
            try:
                program = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
                stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            env = environment(process.pid)
            if b"launcher.runtime.pack.worker" not in program or b"SLURM_STEP_ID" not in env or stat[0] == "Z":
                continue
            name = env.get(b"SLURM_JOB_ID", b"").decode()
            if b"SLURM_ARRAY_JOB_ID" in env:
                name = f"{env[b'SLURM_ARRAY_JOB_ID'].decode()}_{env[b'SLURM_ARRAY_TASK_ID'].decode()}"
            if (
                (job is None or name == job)
                and not program[0].endswith(b"srun")
                and str(self.path).encode() in b" ".join(program)
            ):
                found.append((process.pid, int(stat[1])))
        return found

    def workers(self, job: str | None = None) -> list[int]:
        """Process ids of workers: the parents."""
        found = self.processes(job)
        pids = {pid for pid, _ in found}
        return [pid for pid, parent in found if parent not in pids]

    def members(self, job: str | None = None) -> list[int]:
        """Process ids of members: children of a worker."""
        found = self.processes(job)
        pids = {pid for pid, _ in found}
        return [pid for pid, parent in found if parent in pids]

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(pid, number)

    def story(self, *of: Run) -> str:
        """What a person would look at; with the attempts ``of`` these, and of runs that are not done."""
        logs = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.path.glob("jobs/*.err"))]
        left = [*of, *(run for run in self.runs if run.state != "COMPLETED")]
        events = [f"--- {r.path.name} {r.read('status.json')}\n{_text(r.path / 'attempts.jsonl')}" for r in left]
        queues = [str(path.relative_to(self.path)) for path in sorted(self.path.glob("queues/*/*/*"))]
        workers = [_text(path) for path in sorted(self.path.glob("queues/*/workers/*.jsonl"))]
        return "\n".join([str(self.states()), str(self.finished()), *queues, *workers, *events, *logs])


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
