"""The comparison itself: settings in order, each with mean and spread over its seeds, and what mattered."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from sweeps.compare.columns import ABSENT, Column, differing, setting_of, value_of
from sweeps.compare.importance import Importance, importance, same_partition
from sweeps.compare.metric import Metric
from sweeps.compare.reading import Found, Run, counted


@dataclass(frozen=True)
class Member:
    """A run with its metric."""

    run: Run
    value: float | None
    """None: the run has no such number."""
    partial: bool
    """Whether the run is not done, and the number is where it stood last."""


@dataclass(frozen=True)
class Setting:
    """Runs that are equal but for their seed."""

    members: tuple[Member, ...]
    """Best first."""
    mean: float | None
    """Of the metric; not finite where one of them is not; None where one of them has none."""
    spread: float | None
    """Sample standard deviation; None of one run."""

    @property
    def first(self) -> Run:
        """The best of them."""
        return self.members[0].run


@dataclass(frozen=True)
class Report:
    """All that a comparison tells."""

    title: str
    metric: Metric
    columns: tuple[Column, ...]
    settings: tuple[Setting, ...]
    """Of COMPLETED runs, best first."""
    unranked: tuple[Member, ...]
    """All other runs, in the order in which they were asked for."""
    parameters: tuple[Importance, ...]
    """What explains most first."""
    notes: tuple[str, ...]

    @property
    def ranked(self) -> list[Member]:
        """Every run of ``settings``, best setting first."""
        return [member for setting in self.settings for member in setting.members]

    def name_of(self, key: str) -> str:
        """The heading of the column ``key``."""
        return next(column.name for column in self.columns if column.key == key)


def compare(found: Found, metric: Metric) -> Report:
    """Rank the runs by ``metric``."""
    columns = tuple(differing(found.runs))
    groups: defaultdict[Hashable, list[Member]] = defaultdict(list)
    unranked = []
    for run in found.runs:
        if run.is_done:
            groups[setting_of(run, columns)].append(Member(run, metric.of(run), False))
        else:
            unranked.append(Member(run, metric.so_far(run), True))
    settings = [_setting(members, metric) for members in groups.values()]
    settings.sort(key=lambda setting: (*metric.order(setting.mean), setting.first.run_id))
    title = ", ".join(dict.fromkeys(run.sweep for run in found.runs))
    report = Report(title, metric, columns, tuple(settings), tuple(unranked), (), ())
    return replace(report, parameters=tuple(_parameters(report)), notes=(*found.notes, *_notes(report)))


def _setting(members: Sequence[Member], metric: Metric) -> Setting:
    ordered = sorted(members, key=lambda m: (*metric.order(m.value), m.run.run_id))
    numbers = [member.value for member in ordered if member.value is not None]
    if len(numbers) < len(ordered):
        return Setting(tuple(ordered), None, None)
    if not all(map(math.isfinite, numbers)):
        return Setting(tuple(ordered), math.nan, None)
    mean = math.fsum(number / len(numbers) for number in numbers)
    return Setting(tuple(ordered), mean, statistics.stdev(numbers) if len(numbers) > 1 else None)


def _parameters(report: Report) -> list[Importance]:
    """One for each column; columns that always changed together are told as one."""
    known = [(m.run, m.value) for m in report.ranked if m.value is not None and math.isfinite(m.value)]
    numbers = [value for _, value in known]
    found: list[tuple[list[object], Importance]] = []
    for column in report.columns if known else ():
        values = [value_of(run, column.key) for run, _ in known]
        twin = next((i for i, (others, _) in enumerate(found) if same_partition(values, others)), None)
        if twin is None or len(set(map(repr, values))) == 1:
            found.append((values, importance(column.key, values, numbers, ordered=not column.is_seed)))
        else:
            one = found[twin][1]
            note = f"{one.note}; " if one.note else ""
            note += f"always changed together with {column.name}: which of them mattered cannot be told"
            found[twin] = (found[twin][0], replace(one, note=note))
    return sorted((one for _, one in found), key=lambda one: -1.0 if one.share is None else -one.share - 1)


def _notes(report: Report) -> list[str]:
    notes, name, ranked = [], report.metric.name, report.ranked
    if missing := sum(member.value is None for member in ranked):
        notes.append(f"{missing} of {len(ranked)} COMPLETED runs have no {name}: ranked last")
    if infinite := sum(m.value is not None and not math.isfinite(m.value) for m in ranked):
        notes.append(f"{infinite} of {len(ranked)} COMPLETED runs have a {name} that is not finite: ranked last")
    if partial := sum(member.value is not None for member in report.unranked):
        notes.append(f"{counted(partial)} not ranked; the {name} beside it, marked ~, is where it stood last")
    if problems := [problem for member in report.unranked for problem in member.run.problems]:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        notes.append(f"not ranked, for a file of it cannot be read: {problems[0]}{more}")
    if not ranked:
        notes.append("no run is COMPLETED: there is nothing to rank yet")
    return notes


def settings_shown(report: Report, run: Run, *, seeds: bool) -> dict[str, object]:
    """The differing settings of ``run`` by heading; those that it has not are left out."""
    columns = [column for column in report.columns if seeds or not column.is_seed]
    return {c.name: value for c in columns if (value := value_of(run, c.key)) != ABSENT}
