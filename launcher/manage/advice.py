"""``launcher status --advise``: why runs wait, in plain words, and which shape of theirs would start sooner.

Slurm is asked by ``sbatch --test-only`` with each run's own batch script, which changes nothing. What it answers is the
time at which the resources are free, and on top of it the work of all jobs that stand in line before a new one, those
of this user among them. That is the same for every shape in one partition: so the start that Slurm foretells for
the job that waits, moved by the difference of two such answers, is what another shape would have in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import gcd
from pathlib import Path
from typing import Any

from launcher.manage.reasons import explained
from launcher.manage.shapes import Change, Shape, changes
from launcher.manage.states import RunState
from launcher.manage.survey import cluster_of
from launcher.manage.terminal import printable
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import Submission, SweepDir
from launcher.slurm_cli import Slurm, SlurmAway
from launcher.slurm_text import Forecast

_WAITING = ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""Slurm's states of a job that waits."""
_CALLS = 8
"""Most calls of ``sbatch --test-only`` for one shape."""
_SHAPES = 5
"""Most shapes that Slurm is asked about; of more runs that wait, the first ones'."""
_NOW = timedelta(minutes=1)
"""No sooner than so much is worth a word."""


@dataclass(frozen=True)
class Suggestion:
    """Another shape that would start sooner."""

    what: str
    price: str
    overrides: list[str]
    start: str
    """When, ISO 8601, local time of the cluster."""
    now: bool
    preempts: bool
    """Whether other jobs would be ended for it."""


@dataclass(frozen=True)
class Advice:
    """What is told of runs that wait for the same."""

    paths: list[str]
    shape: str
    reason: str
    """Slurm's own word."""
    means: str
    remedy: str
    expected: str
    """When it would start as it is; empty: nobody knows."""
    suggestions: list[Suggestion]
    note: str
    """Why nothing smaller was found or asked for; empty where something was."""

    def lines(self) -> Iterator[str]:
        """For a person."""
        many = f"{len(self.paths)} runs wait" if len(self.paths) > 1 else f"{Path(self.paths[0]).name} waits"
        yield f"{many} for {self.shape}: {self.means} ({self.reason or 'no reason yet'}); {self.remedy}"
        asked = _told(self.expected) if self.expected else "not known"
        for one in self.suggestions:
            when = "could start now" if one.now else f"could start at {_told(one.start)}"
            extra = ", ".join(filter(None, (one.price, "ends other jobs" if one.preempts else "")))
            yield f"  {one.what}: {when} (asked: {asked}){', ' * bool(extra)}{extra}: {' '.join(one.overrides)}"
        if self.suggestions:
            run, first = Path(self.paths[0]).name, " ".join(self.suggestions[0].overrides)
            yield f"  to take one:  python -m launcher cancel {run} && python -m launcher resume {run} {first}"
        if self.note:
            yield f"  {self.note}"

    def to_json(self) -> dict[str, Any]:
        """For ``--json``: what each of its runs is told."""
        return {name: value for name, value in asdict(self).items() if name != "paths"}


@dataclass
class _Waiting:
    """Runs that wait for the same."""

    slurm_conf: str | None
    script: Path
    shape: Shape
    states: list[RunState]


def advise(rows: Sequence[tuple[SweepDir, RunState]], env: Mapping[str, str]) -> list[Advice]:
    """What to know of all runs among ``rows`` that wait in Slurm's queue."""
    groups = _grouped(rows, env)
    return [_advice(group, env, ask=index < _SHAPES) for index, group in enumerate(groups)]


def _grouped(rows: Sequence[tuple[SweepDir, RunState]], env: Mapping[str, str]) -> list[_Waiting]:
    groups: dict[Any, _Waiting] = {}
    latest: dict[Path, dict[str, Submission]] = {}
    for sweep, state in rows:
        if state.slurm not in _WAITING:
            continue
        if sweep.path not in latest:
            sent = [s for s in sweep.read_submissions() if s.job_id and not s.withdrawn]
            latest[sweep.path] = {run: submission for submission in sent for run in submission.runs}
        submission = latest[sweep.path].get(state.run_id)
        if submission is None:
            continue
        script, conf = sweep.script(submission.token), cluster_of(submission.slurm_conf, env)
        try:
            shape = Shape.of(script)
        except UserError:  # somebody has removed it: what it asked for is not known
            shape = Shape({})
        key = (conf, shape.key, state.waits_for.partition(",")[0])
        groups.setdefault(key, _Waiting(conf, script, shape, [])).states.append(state)
    return list(groups.values())


def _advice(waiting: _Waiting, env: Mapping[str, str], *, ask: bool) -> Advice:
    first = min(waiting.states, key=lambda state: state.start or "~")
    reason = explained(first.waits_for)
    suggestions: list[Suggestion] = []
    expected, note = first.start, ""
    if not ask:
        note = f"Slurm was asked about {_SHAPES} other shapes; look at this sweep alone to ask about this one"
    elif not reason.by_shape:
        note = "asking for less would not change that"
    elif not waiting.shape.options:
        note = f"{waiting.script}: is gone, what it asks for is not known"
    else:
        try:
            expected, suggestions, note = _asked(waiting, Slurm(env, waiting.slurm_conf, patient=False), first)
        except SlurmAway as error:
            note = str(error)
    paths = [state.path for state in waiting.states]
    shape = str(waiting.shape) if waiting.shape.options else "something"
    return Advice(paths, shape, first.waits_for, reason.means, reason.remedy, expected, suggestions, note)


def _asked(waiting: _Waiting, slurm: Slurm, first: RunState) -> tuple[str, list[Suggestion], str]:
    """When it starts as it is, which shapes start sooner, and a note where there are none."""
    script, now = waiting.script, datetime.now().replace(microsecond=0)
    refused = ""
    try:
        as_it_is = slurm.forecast(script)
    except SlurmAway:
        raise
    except UserError as error:  # it would not be taken today: smaller ones may be
        as_it_is, refused = None, f"as it is Slurm would not take it: {error}"
    expected = _time(first.start) or (as_it_is.start if as_it_is else None)
    found: list[tuple[datetime, Suggestion]] = []
    for change in changes(waiting.shape, _batch_size(waiting.states), _partitions(waiting.shape, slurm), _CALLS - 1):
        try:
            other = slurm.forecast(script, change.options)
        except SlurmAway:
            raise
        except UserError:  # it cannot have that shape
            continue
        if other is None:
            continue
        start = max(_moved(change, as_it_is, expected, other), now)
        if expected is None or start + _NOW <= expected:
            found.append((start, _suggestion(change, start, now, other)))
    found.sort(key=lambda pair: pair[0])  # of those that start together the first one asked about helps most
    said = [suggestion for _, suggestion in found]
    note = refused or ("" if said else "no smaller shape that Slurm was asked about would start sooner")
    return expected.isoformat() if expected else "", said, note


def _moved(change: Change, as_it_is: Forecast | None, expected: datetime | None, other: Forecast) -> datetime:
    """When ``other`` starts in the place of the job that waits; in another partition it joins another line."""
    if as_it_is is None or expected is None or "partition" in change.values:
        return other.start
    return expected - (as_it_is.start - other.start)


def _suggestion(change: Change, start: datetime, now: datetime, other: Forecast) -> Suggestion:
    soon = start - now < _NOW
    return Suggestion(change.what, change.price, change.overrides, start.isoformat(), soon, other.preempts)


def _partitions(shape: Shape, slurm: Slurm) -> list[str]:
    """Others that are up and have no stricter limits in plain sight; whether this user may, Slurm says when asked."""
    own = shape.options.get("partition")
    found = slurm.partitions()
    own = own or next((name for name, settings in found.items() if settings.get("Default") == "YES"), None)
    return [name for name, s in found.items() if name != own and s.get("State") == "UP" and s.get("RootOnly") != "YES"]


def _batch_size(states: Sequence[RunState]) -> int | None:
    """What the global batches of all of them can be divided by, under the key that every task's config has for it."""
    sizes = []
    for state in states:
        with suppress(UserError):  # no plan is there, or another version's
            trainer = Plan.read(RunDir(Path(state.path))).config_values().get("trainer")
            sizes += [trainer.get("batch_size")] if isinstance(trainer, Mapping) else []
    numbers = [size for size in sizes if isinstance(size, int)]
    return gcd(*numbers) if numbers else None


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _told(text: str) -> str:
    """``17:40`` of today, else with its date."""
    at = _time(text)
    if at is None:
        return printable(text)
    return f"{at:%H:%M}" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d %H:%M}"
