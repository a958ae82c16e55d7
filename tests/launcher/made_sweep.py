"""Sweep directories as the launcher and its jobs leave them, written by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from launcher.runtime.files import write_json
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir


class MadeSweep:
    """A sweep in ``folder`` whose runs and submissions tests write down step by step."""

    def __init__(self, folder: Path) -> None:
        self.dir = SweepDir(folder)
        folder.mkdir(parents=True)

    def run(self, run_id: str, *overrides: str) -> RunDir:
        """A planned run."""
        rundir = self.dir.run(run_id)
        rundir.path.mkdir()
        write_json(rundir.plan, {})
        self.dir.add_members([(run_id, overrides)])
        return rundir

    def submitted(self, *runs: str, job: str | None = "12", token: str = "t1", **values: Any) -> None:
        """One call of sbatch for ``runs``; ``job`` None: it is not known whether it got through."""
        self.dir.add_event("intent", token, runs=runs, **({"slurm_conf": None} | values))
        if job is not None:
            self.dir.add_event("submitted", token, job_id=job)

    def status(self, run_id: str, state: str, reason: str = "", age_s: float = 0.0, **values: Any) -> None:
        """What the run's ``status.json`` says; its heartbeat is ``age_s`` old."""
        given = {"state": state, "reason": reason, "step": 3, "loss": 1.25, "samples_per_s": 100.0}
        self.dir.run(run_id).write_status(**(given | {"heartbeat": time.time() - age_s} | values))

    def started(self, run_id: str, job: str | None = "12", incarnation: str = "12.r0", **values: Any) -> None:
        """An attempt that began."""
        given = {"event": "start", "attempt": 1, "job_id": job, "hosts": ["n1"], "incarnation": incarnation}
        self.dir.run(run_id).add_attempt_event(**(given | {"time": "2026-11-22T03:00:00"} | values))

    def failure(self, run_id: str, rank: int, kind: str, message: str, incarnation: str = "12.r0", **more: Any) -> None:
        """What a rank wrote when it failed."""
        folder = self.dir.run(run_id).path / "attempts" / incarnation
        folder.mkdir(parents=True, exist_ok=True)
        given = {"rank": rank, "host": f"n{rank + 1}", "time": "2026-11-22T03:01:00", "kind": kind, "message": message}
        write_json(folder / f"rank{rank}.failed.json", given | {"after_another": False} | more)
