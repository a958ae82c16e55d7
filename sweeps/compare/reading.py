"""What the files of finished and unfinished runs say; one that is torn hides no other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.manage.targets import below, merged
from launcher.runtime.curves import Series, read_series
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import flat
from launcher.runtime.sweepdir import SweepDir

PARENT = "parent"
"""A setting like others: the run from whose state this one began. Those from scratch have none."""


@dataclass(frozen=True)
class Run:
    """One run, as its files have it."""

    sweep: str
    """Name of its sweep."""
    rundir: RunDir
    state: str
    config: Mapping[str, Any]
    """Science and execution under flat keys (``optim.lr``); lists as JSON text. Empty: the plan is not readable."""
    task: str
    """What trains it (``package.module:function``)."""
    code: str | None
    """Id of the code snapshot it was planned with."""
    summary: Mapping[str, Any]
    status: Mapping[str, Any]
    series: Series
    problems: tuple[str, ...]
    """What of it could not be read."""

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.rundir.path.name

    @property
    def is_done(self) -> bool:
        """Whether it may be ranked: COMPLETED, and everything about it known."""
        return self.state == "COMPLETED" and not self.problems


@dataclass(frozen=True)
class Found:
    """All runs that some folders hold."""

    runs: tuple[Run, ...]
    sweeps: tuple[SweepDir, ...]
    notes: tuple[str, ...]
    """What a reader should know before believing a comparison."""


def read_runs(folders: Iterable[Path]) -> Found:
    """Read every run in ``folders`` (a run's, a sweep's, or a root of sweeps), each once.

    Raises:
        UserError: there is no such folder, or it holds no run.
    """
    targets = merged(target for folder in folders for target in below(folder))
    several = len({target.sweep.path.name for target in targets}) < len(targets)
    runs: dict[tuple[str, str], Run] = {}
    twice = 0
    for target in targets:
        name = str(target.sweep.path) if several else target.sweep.path.name
        for run_id in target.run_ids:
            run = replace(_read(target.sweep.run(run_id)), sweep=name)
            same = (run_id, json.dumps(run.config, sort_keys=True) if run.config else name)
            twice += same in runs
            if same not in runs or (run.is_done and not runs[same].is_done):
                runs[same] = run
    notes = [f"{counted(twice)} there twice, in other sweeps: each counts once"] if twice else []
    notes += _mixture(list(runs.values()))
    return Found(tuple(runs.values()), tuple(target.sweep for target in targets), tuple(notes))


def counted(runs: int) -> str:
    """``1 run is``, ``2 runs are``."""
    return "1 run is" if runs == 1 else f"{runs} runs are"


def _mixture(runs: list[Run]) -> list[str]:
    notes = []
    if len(tasks := sorted({run.task for run in runs if run.task})) > 1:
        notes.append(f"runs of {len(tasks)} tasks ({', '.join(tasks)}): their metrics may mean different things")
    if len(codes := {run.code for run in runs if run.code}) > 1:
        notes.append(f"the runs were planned with {len(codes)} states of the code")
    return notes


def _read(rundir: RunDir) -> Run:
    problems: list[str] = []
    config, task, code = _read_plan(rundir, problems)
    status: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    series: Series = {}
    try:
        status = rundir.read_status()
        summary = rundir.read(rundir.summary) or {}
    except UserError as error:
        problems.append(str(error))
    try:
        series = read_series(rundir.metrics) if rundir.metrics.exists() else {}  # it may have logged nothing yet
    except OSError as error:
        problems.append(f"{rundir.metrics}: {error.strerror}")
    state = str(status.get("state") or summary.get("status") or "PLANNED")
    return Run("", rundir, state, config, task, code, summary, status, series, tuple(problems))


def _read_plan(rundir: RunDir, problems: list[str]) -> tuple[dict[str, Any], str, str | None]:
    if not rundir.plan.exists():  # a member that was asked for, and never planned
        return {}, "", None
    try:
        plan = Plan.read(rundir)
        rest = {name: values for name, values in plan.execution.items() if name != "task"}
        config = flat(rest) | flat(plan.execution.get("task", {})) | flat(plan.science)
        config |= {PARENT: plan.parent_id} if plan.parent_id else {}
    except UserError as error:
        problems.append(str(error))
        return {}, "", None
    except (AttributeError, TypeError):  # JSON, but no plan
        problems.append(f"{rundir.plan}: is damaged, or another version's")
        return {}, "", None
    return {key: _scalar(value) for key, value in config.items()}, plan.target, plan.code


def _scalar(value: Any) -> Any:
    """A setting that equals itself and that JSON has; another is the text of it (NaN, a number beyond all floats)."""
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        return str(value)
    return value if isinstance(value, int | float | str | None) else json.dumps(value)
