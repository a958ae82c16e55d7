"""The run directory: the only place that knows the names of a run's files."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.files import append_json_line, read_json_lines, write_json
from launcher.runtime.run_lock import RunLock, holder_of

_UNFINISHED = ".unfinished-"
_CHECKPOINT = re.compile(r"(?P<kind>step|best|final)-(?P<step>\d{12})\.a(?P<attempt>\d{4,})")
_TRACE = re.compile(r"rank(?P<rank>\d+)\.step(?P<step>\d+)\.a(?P<attempt>\d+)\.pt\.trace\.json(\.gz)?")


@dataclass(frozen=True)
class RunDir:
    """One run's folder, ``<root>/<sweep>/<run_id>``. Properties name the files; few methods read or write them."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config as YAML, secrets redacted."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """What this run is: science, execution, environment."""
        return self.path / "plan.json"

    @property
    def attempts(self) -> Path:
        """One line for each start and each end of an attempt."""
        return self.path / "attempts.jsonl"

    @property
    def status(self) -> Path:
        """State, step, last loss, heartbeat; replaced atomically."""
        return self.path / "status.json"

    @property
    def summary(self) -> Path:
        """Written at the end: the numbers that runs are compared by."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """``step,split,name,value``: every number that was logged."""
        return self.path / "metrics.csv"

    @property
    def losses(self) -> Path:
        """``step`` and one column a loss, for a spreadsheet."""
        return self.path / "losses_log.csv"

    @property
    def timings(self) -> Path:
        """``step`` and one column a phase, in seconds a step."""
        return self.path / "timing_logs.csv"

    @property
    def loss_curve(self) -> Path:
        """Losses over steps, a picture."""
        return self.path / "loss_curve.png"

    @property
    def timing_curve(self) -> Path:
        """Seconds a step by phase, a picture."""
        return self.path / "timing_curve.png"

    @property
    def samples(self) -> Path:
        """``step,rank,sample_id``: a row for each sample trained on, where the task was asked for it."""
        return self.path / "samples.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tb"

    @property
    def mlflow(self) -> Path:
        """Which store of MLflow records this run, and as which of its runs."""
        return self.path / "mlflow.json"

    @property
    def wandb(self) -> Path:
        """W&B's own files, a folder for each attempt; it names them."""
        return self.path / "wandb"

    @property
    def program_config(self) -> Path:
        """``task=command``: the task's config for the program."""
        return self.path / "config.json"

    @property
    def program_metrics(self) -> Path:
        """``task=command``: what the program of this attempt has told."""
        return self.path / "program.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, a folder each."""
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """Name of the newest checkpoint; a hint, never trusted."""
        return self.checkpoints / "LATEST"

    @property
    def traces(self) -> Path:
        """What the profiler recorded, a file for each window and rank."""
        return self.path / "traces"

    @property
    def trace_report(self) -> Path:
        """Where the time went, in words, of the newest trace; written at the end."""
        return self.traces / "report.txt"

    def trace(self, rank: int, step: int, attempt: int) -> Path:
        """The trace whose last step is ``step``; the name's end is what TensorBoard's profiler plugin looks for."""
        return self.traces / f"rank{rank}.step{step:06d}.a{attempt:04d}.pt.trace.json.gz"

    def memory_snapshot(self, rank: int, step: int, attempt: int) -> Path:
        """The GPU's allocations in the window that ends with ``step``, for pytorch.org/memory_viz."""
        return self.traces / f"rank{rank}.step{step:06d}.a{attempt:04d}.memory.pickle"

    def rank_of(self, trace: Path) -> int:
        """Whose trace one of ``list_traces`` is."""
        return int(_TRACE.fullmatch(trace.name)["rank"])  # type: ignore[index]

    def list_traces(self) -> list[Path]:
        """All traces: by rank, of each rank the newest first by (step, attempt)."""
        found = [(name, path) for path in self.traces.glob("rank*") if (name := _TRACE.fullmatch(path.name))]
        key = ("rank", "step", "attempt")
        ordered = sorted(found, key=lambda pair: [int(pair[0][k]) * (1 if k == "rank" else -1) for k in key])
        return [path for _, path in ordered]

    def log(self, rank: int) -> Path:
        """What rank ``rank`` said."""
        return self.path / "logs" / f"rank{rank}.log"

    def hang(self, rank: int) -> Path:
        """Stacks of a rank that made no progress."""
        return self.path / "logs" / f"rank{rank}.hang.txt"

    @property
    def flight_prefix(self) -> Path:
        """Where NCCL's record of collectives goes, the rank's number behind it."""
        return self.path / "logs" / "flight.rank"

    def flight(self, rank: int) -> Path:
        """Gloo's record of collectives of a rank that made no progress."""
        return self.path / "logs" / f"rank{rank}.flight.json"

    def rendezvous(self, incarnation: str) -> Path:
        """Where rank 0 tells the other ranks of one start where to meet, or that there is nothing to do."""
        return self._start(incarnation) / "rendezvous.json"

    def failure(self, incarnation: str, rank: int) -> Path:
        """Why rank ``rank`` of one start failed."""
        return self._start(incarnation) / f"rank{rank}.failed.json"

    def preflight(self, incarnation: str, rank: int) -> Path:
        """What rank ``rank`` of one start writes to see that it can; gone at once, and ``sweep`` takes what is left."""
        return self.path / f".preflight-{incarnation}.rank{rank}.tmp"

    def failures(self, incarnation: str) -> list[Path]:
        """Every rank's reason that is there, in no order."""
        return list(self._start(incarnation).glob("rank*.failed.json"))

    def failure_records(self) -> list[dict[str, Any]]:
        """What ranks wrote when they failed (rank, host, time, kind, message), oldest first, of all starts.

        ``incarnation`` names the start, and ``after_another`` says that the rank only lost a peer.
        """
        records = []
        for file in self.path.glob("attempts/*/rank*.failed.json"):
            try:
                record = self.read(file)
            except UserError:  # torn by a crash
                continue
            if record is not None:
                records.append({"incarnation": file.parent.name} | record)
        return sorted(records, key=lambda record: (str(record.get("time")), str(record.get("rank"))))

    def checkpoint(self, kind: str, step: int, attempt: int) -> Path:
        """Folder of a checkpoint: kind ``step`` (full state), ``best`` or ``final`` (weights)."""
        return self.checkpoints / f"{kind}-{step:012d}.a{attempt:04d}"

    def unfinished(self, checkpoint: Path) -> Path:
        """Where a checkpoint is written before it is committed, and lies while it is deleted."""
        return checkpoint.with_name(f"{_UNFINISHED}{checkpoint.name}.{secrets.token_hex(4)}")

    def list_unfinished(self) -> list[Path]:
        """What saves and deletions that crashed have left, and what is being written now."""
        return list(self.checkpoints.glob(f"{_UNFINISHED}*"))

    def list_torn(self) -> list[Path]:
        """What replacing files has left where it was cut off."""
        return [p for folder in (self.path, self.checkpoints, self.traces) for p in folder.glob(".*.tmp")]

    def sweep(self) -> None:
        """Remove ``list_torn``; only the attempt that holds the run may."""
        for left in self.list_torn():
            left.unlink(missing_ok=True)

    def list_checkpoints(self, kind: str) -> list[Path]:
        """Committed checkpoints of ``kind``, newest first by (step, attempt), never by time."""
        if not self.checkpoints.is_dir():
            return []
        found = [(name, path) for path in self.checkpoints.iterdir() if (name := checkpoint_of(path.name))]
        return [path for name, path in sorted(found, reverse=True) if name[0] == kind]

    def newest_step(self) -> int:
        """Step of the newest full state, used or not; 0: there is none."""
        names = (_CHECKPOINT.fullmatch(path.name) for path in self.list_checkpoints("step")[:1])
        return next((int(name["step"]) for name in names if name), 0)

    def _start(self, incarnation: str) -> Path:
        return self.path / "attempts" / incarnation

    @property
    def lease(self) -> Path:
        """Which attempt holds the run."""
        return self.path / "lease.json"

    @property
    def lock_file(self) -> Path:
        """What ``lock`` locks."""
        return self.path / ".lock"

    def lock(self) -> RunLock:
        """A lock that one training process of this run holds.

        Raises:
            UserError: on acquiring it where another process holds it.
        """
        return RunLock(self.lock_file)

    def is_locked(self) -> bool:
        """Whether a process trains this run. Takes the lock for a moment: ask only where none seems to live."""
        try:
            with self.lock():
                return False
        except UserError:
            return True

    def lock_holder(self) -> int | None:
        """Process id of who trains this run on this machine, as the kernel has it (proc(5), /proc/locks)."""
        return holder_of(self.lock_file)

    def read(self, path: Path) -> dict[str, Any] | None:
        """A JSON file of this run, or None where it is not there yet.

        Raises:
            UserError: it cannot be read, or holds no JSON object.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it or the run directory") from None
        except ValueError as error:
            raise _Torn(f"{path}: cannot be read ({error}); remove it or the run directory") from None
        if not isinstance(value, dict):
            raise _Torn(f"{path}: holds no JSON object; remove it or the run directory")
        return value

    def read_status(self) -> dict[str, Any]:
        """``status.json``; empty where it is not there.

        While a run goes on it is not synced, and a node that fails may leave it empty: what is torn says no more than
        what the summary, which an attempt removes as it begins, says of the state. A requeue must not end with it.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self.read(self.status) or {}
        except _Torn:
            ended = self.read(self.summary) or {}
            return {"state": ended["status"]} if "status" in ended else {}

    def state(self) -> str | None:
        """The run's state (PLANNED … COMPLETED), or None where it has none."""
        state = self.read_status().get("state")
        return None if state is None else str(state)

    def metric(self) -> float:
        """``metric_of`` its summary; NaN where it has none yet."""
        return metric_of(self.read(self.summary) or {})

    def write_status(self, **values: Any) -> None:
        """Replace ``status.json``; not synced while it runs: an fsync waits for all that a save is writing."""
        write_json(self.status, values, durable=values.get("state") != "RUNNING")

    def say_state(self, state: str, reason: str) -> None:
        """Have ``status.json`` tell ``state`` and ``reason``; where the run stands stays as it is."""
        self.write_status(**(self.read_status() | {"state": state, "reason": reason, "heartbeat": time.time()}))

    def give_up(self, reason: str) -> None:
        """Have the run be FAILED for ``reason``, in its status and in its summary."""
        self.say_state("FAILED", reason)
        step = self.read_status().get("step") or self.newest_step()
        write_json(self.summary, {"status": "FAILED", "step": step, "reason": reason})

    def add_attempt_event(self, **values: Any) -> None:
        """Append to ``attempts.jsonl`` and fsync."""
        append_json_line(self.attempts, values)

    def attempt_events(self) -> list[dict[str, Any]]:
        """All starts, ends and requeues so far; a line that is no such record, torn or by another's hand, is none."""
        return [event for event in read_json_lines(self.attempts) if _is_attempt_event(event)]


def checkpoint_of(name: str) -> tuple[str, int, int] | None:
    """Kind, step and attempt of the checkpoint that a folder's name stands for; None: it is no checkpoint's."""
    found = _CHECKPOINT.fullmatch(name)
    return (found["kind"], int(found["step"]), int(found["attempt"])) if found else None


def _is_attempt_event(event: Mapping[str, Any]) -> bool:
    numbers = [event.get(name) for name in ("attempt", "step", "code", "restarts")]
    return isinstance(event.get("event"), str) and all(n is None or isinstance(n, int) for n in numbers)


def metric_of(summary: Mapping[str, Any]) -> float:
    """What a search minimises: the best validation loss, or the last training loss where nothing is validated."""
    values = (summary.get(name) for name in ("best_val_loss", "train_loss"))
    return next((float(v) for v in values if v is not None), float("nan"))


class _Torn(UserError):
    """A file of ours that is not what we wrote."""
