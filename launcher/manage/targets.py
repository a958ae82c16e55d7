"""What a user means by a word: a sweep's folder, a run's, a root of sweeps, a run's id, or a job's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir

ROOT = Path("runs")
"""Where runs go by default, below the folder in which a command is typed (``launch.root``)."""
_JOB = re.compile(r"\d+(_\d+)?")
_SHOWN = 5


@dataclass(frozen=True)
class Target:
    """Some runs of one sweep."""

    sweep: SweepDir
    runs: tuple[str, ...] | None = None
    """Their ids; None: all."""

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Their ids, in the order in which they were asked for."""
        if self.runs is not None:
            return self.runs
        return tuple(dict.fromkeys([*self.sweep.read_members(), *self.sweep.list_runs()]))


def below(folder: Path) -> list[Target]:
    """The runs that ``folder`` stands for: one run, a sweep's, or those of all sweeps in it, by name.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if RunDir(folder).plan.exists():
        folder = folder.absolute() if folder.name in ("", ".", "..") else folder
        folder = folder.resolve() if folder.name in ("", "..") else folder
        return [Target(SweepDir(folder.parent), (folder.name,))]
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name a sweep's, a run's, or a root of sweeps")
    found = [Target(sweep) for sweep in _sweeps(folder)]
    if not found:
        raise UserError(f"{folder}: holds no run; name a sweep's folder, a run's, or a root of sweeps")
    return found


def named(word: str, cwd: Path) -> list[Target]:
    """The runs that ``word`` stands for: a path (see ``below``), a job's id (``12``, ``12_3``), or a run's id.

    Ids are looked for below ``runs/`` and ``cwd``; the first letters of a run's id are enough if no other has them.

    Raises:
        UserError: nothing, or more than one run, goes by that name.
    """
    path = cwd / Path(word).expanduser()
    if path.exists():
        return below(Path(word).expanduser() if cwd == Path.cwd() else path)
    if "/" in word:
        raise UserError(f"{word}: there is no such folder; name a run's folder, its id, or a job like 12_3")
    sweeps = list(_sweeps(cwd / ROOT, cwd))
    if _JOB.fullmatch(word) and (of_job := _of_job(word, sweeps)):
        return of_job
    found = [Target(s, (r,)) for s in sweeps for r in Target(s).run_ids if r.startswith(word)]
    exact = [target for target in found if target.run_ids == (word,)]
    found = exact or found
    if not found:
        raise UserError(
            f"{word}: no run or job below {cwd / ROOT} or {cwd} goes by that name; name a run's folder, the first "
            "letters of its id, or a job like 12_3 (all runs: python -m launcher status)"
        )
    if len(found) > 1:
        raise UserError(f"{word}: is more than one run: {_paths(found)}; write more of it, or the folder")
    return found


def merged(targets: Iterable[Target]) -> list[Target]:
    """The same runs, each once, by whatever names they were called: one target for each sweep."""
    wanted: dict[Path, tuple[SweepDir, dict[str, None]]] = {}
    for target in targets:
        _, runs = wanted.setdefault(target.sweep.path.resolve(), (target.sweep, {}))
        runs.update(dict.fromkeys(target.run_ids))
    return [Target(sweep, tuple(runs)) for sweep, runs in wanted.values()]


def one_run(word: str, cwd: Path) -> tuple[SweepDir, str]:
    """The one run that ``word`` stands for, and its sweep.

    Raises:
        UserError: it stands for none, or for several.
    """
    runs = [Target(target.sweep, (run,)) for target in named(word, cwd) for run in target.run_ids]
    if len(runs) != 1:
        raise UserError(f"{word}: holds {len(runs)} runs; name one of them: {_paths(runs)}")
    return runs[0].sweep, runs[0].run_ids[0]


def _of_job(word: str, sweeps: Iterable[SweepDir]) -> list[Target]:
    """Runs of a job, or of all elements of an array; the newest where several clusters had that number."""
    found: list[tuple[str, Target]] = []
    for sweep in sweeps:
        for submission in sweep.read_submissions():
            if submission.job_id is None or submission.withdrawn:
                continue
            for link in submission.links:
                runs = tuple(run for run, job in link.jobs() if word in (job, job.partition("_")[0]))
                if runs:
                    found.append((link.time, Target(sweep, runs)))
    return [max(found, key=lambda pair: pair[0])[1]] if found else []


def _sweeps(*folders: Path) -> Iterator[SweepDir]:
    """``folders`` that are sweeps, and the sweeps in them."""
    for folder in folders:
        if _is_sweep(folder):
            yield SweepDir(folder)
        elif folder.is_dir():
            inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            yield from (SweepDir(path) for path in inside if path.is_dir() and _is_sweep(path))


def _is_sweep(folder: Path) -> bool:
    sweep = SweepDir(folder)
    return sweep.members.exists() or bool(sweep.list_runs())


def _paths(targets: Sequence[Target]) -> str:
    paths = [str(t.sweep.run(t.run_ids[0]).path) for t in targets]
    return ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
