"""Runs of ``exact_task`` on a real cluster: broken on purpose, and held against a run that nothing happened to."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.manage.states import RunState
from slurm.faults import show_job
from slurm.processes import Process, wait_until
from tests.integration.user import User

TASK = (Path(__file__).parent / "exact_task.py").read_text()
BASE = (
    "task.target=exact_task:train", "task.schema=exact_task:Config", "site=disposable", "site.slurm_conf=null",
    "hardware.device=cpu", "tracker=tensorboard", "checkpoint.every_steps=20", "checkpoint.at_end=state",
    "optim.lr=1e-3", "trainer.batch_size=8", "trainer.log_every=20", "model.dropout=0.2",
)  # fmt: skip
"""``trainer.log_every`` is the pace: milliseconds that a step takes longer."""
ONE, TWO, FOUR = (), ("hardware.nodes=2",), ("hardware.nodes=2", "hardware.tasks_per_node=2")


@dataclass
class Run:
    """One run of a lab, by its folder."""

    lab: Lab | None
    """None: it is a run of this machine's queue."""
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

    def wait(self, holds: Callable[[], Any], seconds: float = 180) -> None:
        """Until ``holds``; fails with all that is known of the run if it never does."""
        reached = wait_until(holds, seconds)
        assert reached is not False, self.story()

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Until attempt ``attempt`` has logged a step from ``step`` on."""
        self.wait(lambda: len(self.events("start")) >= attempt and self.state == "RUNNING" and self.step >= step)

    def wait_for(self, *states: str, seconds: float = 240) -> None:
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
        """Its ranks that live, of whatever attempt, and the data workers of them; oldest first."""
        found = []
        for process in self.lab.cluster.processes():
            if process.kind != "task":
                continue
            try:
                program = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            env = environment(process.pid)
            # srun, too, is called with the worker's name, and the batch shell has a rank, but neither has a step
            of_a_step = b"SLURM_STEP_ID" in env and not program[0].endswith(b"srun")
            if b"launcher.runtime.worker" in program and of_a_step and env[b"SLURM_JOB_ID"].decode() == self.job:
                found.append(process)
        return sorted(found, key=lambda process: process.started)

    def ranks(self) -> dict[int, int]:
        """Process id of each of its ranks that lives, of whatever attempt."""
        found: dict[int, int] = {}
        for process in self.tasks():
            rank = environment(process.pid).get(b"SLURM_PROCID")
            if rank is not None:
                found.setdefault(int(rank), process.pid)  # its workers came later
        return found

    def kill(self, rank: int, number: int) -> None:
        """Send ``number`` to one rank."""
        os.kill(self.ranks()[rank], number)

    def cancel(self) -> None:
        """As its user does, in the midst of a step: its ranks stand still until they have been asked to save."""
        ranks = self.ranks().values()
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        command = self.lab.start("launcher", "cancel", f"runs/{self.path.parent.name}")
        try:
            said = command.stderr.readline()
            assert "asked to save" in said, said + self.story()
            for pid in ranks:
                os.kill(pid, signal.SIGCONT)
            out, err = command.communicate(timeout=90)
        finally:
            command.kill()
        assert command.returncode == 0, out + err
        self.wait(lambda: show_job(self.lab.cluster, self.job).state == "CANCELLED")
        assert self.events("end")[-1]["code"] == 75, self.story()

    def order(self, name: str, value: float) -> None:
        """See ``exact_task``."""
        give_order(self.path.parent, name, value)

    def wait_held(self, ranks: int) -> None:
        """Until so many ranks stay in the step in which they were ordered to."""
        self.wait(lambda: len(list(self.path.parent.glob("orders/holding.*"))) == ranks)

    def move_on(self, step: int | None = None, name: str = "hold") -> None:
        """Let the ranks go that are held, to be held again in ``step``."""
        folder = self.path.parent / "orders"
        for left in folder.glob("holding.*"):
            left.unlink()
        if step is None:
            (folder / name).unlink()
        else:
            self.order(name, step)

    def logged(self, words: str, rank: int = 0) -> bool:
        """Whether the log of ``rank`` holds ``words``."""
        path = self.path / "logs" / f"rank{rank}.log"
        return path.exists() and words in path.read_text()

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

    def run(
        self, name: str, *overrides: str, launcher: str = "submitit_slurm", orders: Mapping[str, float] | None = None
    ) -> Run:
        """Submit one run as the sweep ``name``; ``orders`` are there before it begins."""
        for what, value in (orders or {}).items():
            give_order(self.home / "runs" / name, what, value)
        done = self.type("launcher.run", f"hydra/launcher={launcher}", *BASE, *overrides, f"launch.name={name}")
        assert done.returncode == 0, done.stdout + done.stderr
        return self.found(name)

    def again(self, name: str, *overrides: str) -> Run:
        """Submit a run that had ended once more; returns when it has begun."""
        begun = len(self.found(name).events("start"))
        run = self.run(name, *overrides)
        run.wait(lambda: len(run.events("start")) > begun and run.state in ("RUNNING", "COMPLETED"))
        return run

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


def environment(pid: int) -> dict[bytes, bytes]:
    """Of a process; empty where it is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(word.partition(b"=")[::2] for word in words)


def give_order(sweep: Path, name: str, value: float) -> None:
    """See ``exact_task``."""
    folder = sweep / "orders"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}"
    aside.write_text(f"{value:g}")
    aside.rename(folder / name)


def assert_same(run: Run, whole: Run) -> None:
    """``run`` ended like ``whole``: the same bits, each sample once, no step logged twice or out of order."""
    run.wait_for("COMPLETED", "FAILED", "CANCELLED")
    whole.wait_for("COMPLETED", "FAILED", "CANCELLED")
    assert (run.state, whole.state) == ("COMPLETED", "COMPLETED"), run.story()
    run.wait(
        lambda: {event["attempt"] for event in run.events("end")} >= {run.events("start")[-1]["attempt"]}
    )  # said last
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
