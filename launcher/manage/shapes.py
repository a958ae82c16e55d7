"""The resources that a batch script asks for, and smaller or other shapes of the same job, each with what to type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from launcher.runtime.errors import UserError

_OPTION = re.compile(r"#SBATCH --(?P<name>[a-z-]+)(?:=(?P<value>.*))?")
_OF_ONE_SUBMISSION = ("job-name", "output", "error", "array", "comment", "open-mode", "chdir", "wckey")
"""Options that say nothing of how soon a job starts."""
_KEYS = {
    "nodes": "nodes", "ntasks-per-node": "tasks_per_node", "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task", "time": "timeout_min", "partition": "partition",
}  # fmt: skip
"""What ``hydra.launcher.*`` calls sbatch's options."""
_SHORTEST_MIN = 10
"""No shorter time limit is suggested: a start and a save have to fit in."""
_MOST_PARTITIONS = 2


@dataclass(frozen=True)
class Shape:
    """What one job asks for."""

    options: Mapping[str, str]
    """sbatch's options by name, as the script has them."""

    @staticmethod
    def of(script: Path) -> Shape:
        """That of a batch script.

        Raises:
            UserError: it cannot be read.
        """
        try:
            found = (_OPTION.fullmatch(line.strip()) for line in script.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise UserError(f"{script}: {error.strerror}; what its jobs ask for is not known") from None
        options = {one["name"]: (one["value"] or "").strip("'\"") for one in found if one}
        return Shape({name: value for name, value in options.items() if name not in _OF_ONE_SUBMISSION})

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """Equal for jobs that wait for the same."""
        return tuple(sorted(self.options.items()))

    def number(self, option: str) -> int:
        """A count that it asks for; 0: it asks for none, or not in plain numbers."""
        value = self.options.get(option, "").rpartition(":")[2]  # of a100:4 the count
        return int(value) if value.isdigit() else 0

    def __str__(self) -> str:
        """``2 nodes, 4 tasks a node, 60 min, partition low``."""
        told = [_counted(self.number("nodes") or 1, "node")]
        told += [f"{_counted(self.number('ntasks-per-node'), 'task')} a node"] if self.number("ntasks-per-node") else []
        told += [f"{_counted(self.number('gpus-per-node'), 'GPU')} a node"] if self.number("gpus-per-node") else []
        told += [f"{_counted(self.number('cpus-per-task'), 'CPU')} a task"] if self.number("cpus-per-task") else []
        told += [f"{self.number('time')} min"] if self.number("time") else []
        told += [f"partition {self.options['partition']}"] if self.options.get("partition") else []
        return ", ".join(told)


@dataclass(frozen=True)
class Change:
    """Another shape of the same job."""

    what: str
    """``1 node instead of 2``."""
    price: str
    """What it costs: ``about twice the time``."""
    values: Mapping[str, str]
    """sbatch's options that it replaces."""

    @property
    def options(self) -> list[str]:
        """For sbatch, on top of the script."""
        return [f"--{name}={value}" for name, value in self.values.items()]

    @property
    def overrides(self) -> list[str]:
        """For ``launcher.run`` and ``launcher resume``; which GPUs the site says."""
        return [f"hydra.launcher.{_KEYS[name]}={value.rpartition(':')[2]}" for name, value in self.values.items()]


def changes(shape: Shape, batch_size: int | None, partitions: Sequence[str], at_most: int) -> list[Change]:
    """Shapes to ask Slurm about, those that help most often first.

    Args:
        batch_size: the global batch; shapes whose ranks do not share it evenly are left out. None: not known.
        partitions: others that could take the job.
    """
    found = [*_fewer(shape, batch_size), *_shorter(shape)]
    moved = [Change(f"partition {name}", "", {"partition": name}) for name in partitions[:_MOST_PARTITIONS]]
    kept = found[: max(at_most - len(moved), 0)]
    return [*kept, *moved][:at_most]


def _fewer(shape: Shape, batch_size: int | None) -> Iterator[Change]:
    nodes, tasks = shape.number("nodes") or 1, shape.number("ntasks-per-node") or 1
    gpus, cpus = shape.number("gpus-per-node"), shape.number("cpus-per-task")

    def shared(ranks: int) -> bool:
        return batch_size is None or batch_size % ranks == 0

    for count in dict.fromkeys((1, ceil(nodes / 2))):
        if count < nodes and shared(count * tasks):
            what = f"{_counted(count, 'node')} instead of {nodes}"
            yield Change(what, _longer(nodes / count), {"nodes": str(count)})
    if gpus > 1:
        half = gpus // 2
        kind, colon, _ = shape.options["gpus-per-node"].rpartition(":")
        values = {"gpus-per-node": f"{kind}{colon}{half}"}
        if tasks > 1:  # a rank for each GPU
            values["ntasks-per-node"] = str(max(tasks * half // gpus, 1))
        if shared(nodes * int(values.get("ntasks-per-node", tasks))):
            yield Change(f"{_counted(half, 'GPU')} a node instead of {gpus}", _longer(gpus / half), values)
    elif not gpus and tasks > 1 and shared(nodes * (tasks // 2)):
        what = f"{_counted(tasks // 2, 'task')} a node instead of {tasks}"
        yield Change(what, _longer(tasks / (tasks // 2)), {"ntasks-per-node": str(tasks // 2)})
    if cpus > 1:
        yield Change(
            f"{_counted(cpus // 2, 'CPU')} a task instead of {cpus}", "slower", {"cpus-per-task": str(cpus // 2)}
        )


def _shorter(shape: Shape) -> Iterator[Change]:
    minutes = shape.number("time")
    for part in (2, 4):
        if minutes // part >= _SHORTEST_MIN:
            what = f"a time limit of {minutes // part} min instead of {minutes}"
            yield Change(what, "what takes longer goes on in the queue again", {"time": str(minutes // part)})


def _longer(factor: float) -> str:
    return "about twice the time" if factor == 2 else f"about {factor:.3g} times the time"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
