"""Optuna's storage of a study, its sampler and its pruner. The only place besides ``trials`` that imports Optuna."""

from __future__ import annotations

import fcntl
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.runtime.errors import UserError
from sweeps.study.definition import Definition, StudySettings
from sweeps.study.folder import StudyDir
from sweeps.study.space import Axis

if TYPE_CHECKING:  # imported where they are used: a quarter of a second, and an extra
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

_PATIENCE_S = 120
"""How long a worker waits for a database that others are writing to."""


def require_optuna() -> None:
    """See that Optuna is installed.

    Raises:
        UserError: it is not.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError('optuna is not installed: pip install "seemore-launcher[hpo]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_storage(folder: StudyDir, settings: StudySettings) -> BaseStorage:
    """Open a study's storage, made where it is not there; the caller holds the study's lock.

    Without the lock two processes that make the tables of a database at once lose one of them. No connection is kept:
    a worker forks.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if settings.storage == "journal":
        return JournalStorage(JournalFileBackend(str(folder.journal), _journal_lock(folder.journal)))
    from sqlalchemy.pool import NullPool

    return RDBStorage(
        f"sqlite:///{folder.database}",
        engine_kwargs={"connect_args": {"timeout": _PATIENCE_S}, "poolclass": NullPool},
    )


def open_study(folder: StudyDir, definition: Definition) -> Study:
    """Open a study, made where it is not there; the caller holds the study's lock."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            storage=open_storage(folder, definition.settings),
            study_name=folder.path.name,
            direction=definition.goal.direction,  # type: ignore[arg-type]
            load_if_exists=True,
        )


def make_sampler(definition: Definition, number: int) -> BaseSampler:
    """What draws trial ``number``: from a seed of its own, else the first trials of all workers would be the same."""
    import optuna

    settings = definition.settings
    if settings.sampler == "grid":  # one order of the combinations for all
        return optuna.samplers.GridSampler({a.key: list(a.choices) for a in definition.space}, seed=settings.seed)
    seed = (settings.seed * 1_000_003 + number) % 2**32
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Trials that run count as bad ones: others that are drawn beside them keep away.
        return optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=seed, constant_liar=True)


def make_pruner(settings: StudySettings) -> BasePruner:
    """What decides that a trial ends early."""
    import optuna

    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_steps)


def draw(trial: Trial, axis: Axis) -> Any:
    """The value of one key; the same one again where it was drawn before."""
    if axis.choices:
        return trial.suggest_categorical(axis.key, axis.choices)
    if not axis.whole:
        return trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log)
    if axis.log:
        return trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=True)
    return trial.suggest_int(axis.key, int(axis.low), int(axis.high), step=axis.step)


def _journal_lock(journal: Path) -> Any:
    """A lock of the kernel's, which goes with its process: Optuna's own would block all others for half a minute."""
    from optuna.storages.journal import JournalFileSymlinkLock

    class _Lock(JournalFileSymlinkLock):
        def acquire(self) -> bool:
            self._descriptor = os.open(journal.with_name(f".{journal.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            _mend(journal)
            return True

        def release(self) -> None:
            os.close(self._descriptor)

    return _Lock(str(journal))


def _mend(journal: Path) -> None:
    """Cut off a last line that its writer died in: what is appended to it could not be read."""
    with suppress(FileNotFoundError), journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size or _last(file, size, 1) == b"\n":
            return
        length = min(size, 64 * 1024)
        while (end := _last(file, size, length).rfind(b"\n")) < 0 and length < size:
            length = min(size, length * 4)
        file.truncate(size - length + end + 1)


def _last(file: Any, size: int, count: int) -> bytes:
    file.seek(size - count)
    return bytes(file.read(count))
