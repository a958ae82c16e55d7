"""Runs of ``exact_task`` on a real cluster: broken on purpose, and held against a run that nothing happened to."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.manage.states import RunState
from slurm.processes import Process, wait_until
from tests.integration.user import User

TASK = (Path(__file__).parent / "exact_task.py").read_text()
BASE = (
    "task.target=exact_task:train", "task.schema=exact_task:Config", "site=disposable", "site.slurm_conf=null",
    "hardware.device=cpu", "tracker=tensorboard", "checkpoint.every_steps=20", "checkpoint.at_end=state",
    "optim.lr=1e-3", "trainer.batch_size=8", "trainer.log_every=20",
)  # fmt: skip
"""``trainer.log_every`` is the pace: milliseconds that a step takes longer."""
ONE, TWO, FOUR = (), ("hardware.nodes=2",), ("hardware.nodes=2", "hardware.tasks_per_node=2")


@dataclass
class Run:
    """One run of a lab, by its folder."""

    lab: Lab
    path: Path
    job: str

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty where there is none yet."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def step(self) -> int:
        """The last step that its status tells."""
        return int(self.read("status.json").get("step") or 0)

    @property
    def state(self) -> str:
        """What its status tells."""
        return str(self.read("status.json").get("state"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """``start``, ``end`` or ``requeue`` lines of attempts.jsonl."""
        path = self.path / "attempts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def wait(self, holds: Callable[[], Any], seconds: float = 90) -> None:
        """Until ``holds``; fails with all that is known of the run if it never does."""
        reached = wait_until(holds, seconds)
        assert reached is not False, self.story()

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Until attempt ``attempt`` has logged a step from ``step`` on."""
        self.wait(lambda: len(self.events("start")) >= attempt and self.state == "RUNNING" and self.step >= step)

    def wait_for(self, *states: str, seconds: float = 120) -> None:
        """Until it is in one of ``states``."""
        self.wait(lambda: self.state in states, seconds)

    def story(self) -> str:
        """What a person would look at."""
        logs = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.path.glob("logs/*"))]
        logs += [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.path.parent.glob("jobs/*"))]
        attempts = self.path / "attempts.jsonl"
        told = attempts.read_text() if attempts.exists() else ""
        return "\n".join([str(self.read("status.json")), told, *logs])

    def tasks(self) -> list[Process]:
        """Processes of its ranks that live, Python ones only, of whatever attempt."""
        found = []
        for process in self.lab.cluster.processes():
            if process.kind == "task":
                try:
                    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                ours = _environment(process.pid).get("SLURM_JOB_ID") == self.job
                if ours and b"launcher.runtime.worker" in words and b"python" in words[0]:  # not srun: it names it too
                    found.append(process)
        return found

    def ranks(self) -> dict[int, int]:
        """Process id of each rank that lives."""
        found = {}
        for process in self.tasks():
            rank = _environment(process.pid).get("SLURM_PROCID")
            if rank is not None:
                found[int(rank)] = process.pid
        return found

    def kill(self, rank: int, number: int) -> None:
        """Send ``number`` to one rank."""
        os.kill(self.ranks()[rank], number)

    def order(self, name: str, value: float) -> None:
        """See ``exact_task``."""
        folder = self.path.parent / "orders"
        folder.mkdir(exist_ok=True)
        aside = folder / f".{name}"
        aside.write_text(f"{value:g}")
        aside.rename(folder / name)

    def checkpoints(self) -> list[Path]:
        """Full states, oldest first."""
        return sorted(self.path.glob("checkpoints/step-*"))


@dataclass
class Lab(User):
    """A user whose repository holds ``exact_task``."""

    whole: dict[tuple[str, ...], Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put the task where jobs import it from."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "exact_task.py").write_text(TASK)
        super().__post_init__()

    def run(self, name: str, *overrides: str, launcher: str = "submitit_slurm") -> Run:
        """Submit one run as the sweep ``name``."""
        done = self.type("launcher.run", f"hydra/launcher={launcher}", *BASE, *overrides, f"launch.name={name}")
        assert done.returncode == 0, done.stdout + done.stderr
        return self.found(name)

    def found(self, name: str) -> Run:
        """The one run of the sweep ``name``, and its newest job."""
        sweep = self.home / "runs" / name
        (plan,) = sweep.glob("*/plan.json")
        events = [json.loads(line) for line in (sweep / "submissions.jsonl").read_text().splitlines()]
        return Run(self, plan.parent, [event["job_id"] for event in events if event["event"] == "submitted"][-1])

    def uninterrupted(self, *overrides: str) -> Run:
        """The same run, to which nothing happens; made once for all tests that ask."""
        if overrides not in self.whole:
            self.whole[overrides] = self.run(f"whole-{len(self.whole)}", *overrides)
        return self.whole[overrides]


def _environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty where it has ended."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.partition("=")[::2] for word in words)


def assert_same(run: Run, whole: Run) -> None:
    """``run`` ended like ``whole``: the same bits, each sample once, no step logged twice or out of order."""
    run.wait_for("COMPLETED", "FAILED", "CANCELLED")
    whole.wait_for("COMPLETED", "FAILED", "CANCELLED")
    assert (run.state, whole.state) == ("COMPLETED", "COMPLETED"), run.story()
    assert len(whole.events("start")) == 1, "something happened to the other run, too"
    assert run.read("summary.json")["weights_sha256"] == whole.read("summary.json")["weights_sha256"], run.story()
    assert samples(run) == samples(whole) and max(samples(run).values()) == 1, run.story()
    assert_logs_go_forward(run)


def samples(run: Run) -> Counter[tuple[int, int]]:
    """How often each (step, sample) was trained on."""
    rows = csv.DictReader((run.path / "samples.csv").read_text().splitlines())
    return Counter((int(row["step"]), int(row["sample_id"])) for row in rows)


def assert_logs_go_forward(run: Run) -> None:
    """metrics.csv and TensorBoard hold each step of each curve once, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last = run.read("summary.json")["step"]
    rows = csv.DictReader((run.path / "metrics.csv").read_text().splitlines())
    losses = [int(row["step"]) for row in rows if (row["split"], row["name"]) == ("train", "loss")]
    assert losses == list(range(1, last + 1)), losses
    events = EventAccumulator(str(run.path / "tb"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == losses


def redone(run: Run) -> int:
    """Steps that were computed again: by how much each attempt began before the end of the one before it."""
    ends = {event["attempt"]: event["step"] for event in run.events("end")}
    starts = run.events("start")
    return sum(max(0, ends.get(start["attempt"] - 1, start["step"]) - start["step"]) for start in starts[1:])


def rows(lab: Lab, name: str) -> Sequence[RunState]:
    """What ``launcher status`` says."""
    done = lab.type("launcher", "status", f"runs/{name}", "--json")
    assert done.returncode == 0, done.stderr
    return [
        RunState(**{k: v for k, v in row.items() if k in RunState.__dataclass_fields__})
        for row in json.loads(done.stdout)
    ]
