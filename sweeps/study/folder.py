"""A study's folder: a sweep's, with the study's own files beside the runs. The only place that knows their names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from launcher.runtime.errors import UserError
from launcher.runtime.files import write_json
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from sweeps.study.definition import SHOWN, Definition, Limits


@dataclass(frozen=True)
class TrialFile:
    """What was decided for a trial before it began."""

    number: int
    params: dict[str, Any]
    plan: Plan
    same_as: int | None
    """An earlier trial with the same run, whose value this one takes."""


@dataclass(frozen=True)
class StudyDir:
    """A study, as files."""

    sweep: SweepDir

    @property
    def path(self) -> Path:
        """The folder."""
        return self.sweep.path

    @property
    def definition(self) -> Path:
        """What the study is, by its newest command."""
        return self.path / "study.json"

    def frozen(self, token: str) -> Path:
        """What it was when the workers of one command were started; never changed."""
        return self.path / "submissions" / f"{token}.study.json"

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.path / "study.journal"

    @property
    def database(self) -> Path:
        """Optuna's SQLite database."""
        return self.path / "study.db"

    @property
    def _limits(self) -> Path:
        return self.path / "study-limits.json"

    @property
    def queue(self) -> Queue:
        """Trials that wait, are trained, or are over."""
        return Queue(self.sweep.queue("study"))

    def trial(self, number: int) -> Path:
        """What was decided for a trial."""
        return self.path / "trials" / f"{entry_name(number)}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who asks and tells. The lock goes with its process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / ".study.lock"):
            yield

    def create(self, definition: Definition, limits: Limits) -> None:
        """Make the folder, or go on with the study that is in it; the caller holds the lock.

        Raises:
            UserError: it holds another study, or runs of a sweep.
        """
        earlier = self.read()
        if earlier is not None and (differ := earlier.differences(definition)):
            more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
            raise UserError(
                f"{self.path}: holds another study: {', '.join(differ[:SHOWN])}{more}; choose another launch.name=…"
            )
        if earlier is not None:
            self.require_storage(earlier)
        if earlier is None and self.sweep.members.exists() and self.sweep.read_members():
            raise UserError(f"{self.path}: holds runs of a sweep, no study; choose another launch.name=…")
        self.queue.fill([])
        self.trial(0).parent.mkdir(exist_ok=True)
        self.sweep.members.touch()
        write_json(self.definition, definition.to_json())
        self.write_limits(limits)

    def require_storage(self, definition: Definition) -> None:
        """See that Optuna's file is there, where trials have begun.

        Raises:
            UserError: it is gone: to make a new one would begin the study anew.
        """
        file = self.journal if definition.settings.storage == "journal" else self.database
        if not file.exists() and any(self.trial(0).parent.glob("*.json")):
            raise UserError(
                f"{file}: is gone, and {self.trial(0).parent} holds its trials; bring it back, or choose launch.name=…"
            )

    def read(self, token: str | None = None) -> Definition | None:
        """The study; None: there is none. ``token``: as it was for one command's workers.

        Raises:
            UserError: its file cannot be read.
        """
        file = self.definition if token is None else self.frozen(token)
        said = RunDir(self.path).read(file)
        try:
            return None if said is None else Definition.from_json(said)
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"{file}: is damaged, or another version's ({error})") from None

    def read_limits(self) -> Limits:
        """When it is over."""
        return Limits(**(RunDir(self.path).read(self._limits) or {"n_trials": 0}))

    def write_limits(self, limits: Limits) -> None:
        """Replace them; the caller holds the lock."""
        write_json(self._limits, asdict(limits))

    def write_trial(self, trial: TrialFile) -> None:
        """Write down what was decided for a trial, durably."""
        write_json(self.trial(trial.number), asdict(trial))

    def read_trial(self, number: int) -> TrialFile | None:
        """What was decided for a trial; None: nothing yet."""
        said = RunDir(self.path).read(self.trial(number))
        return None if said is None else TrialFile(**(said | {"plan": Plan.from_json(said["plan"])}))
