"""``launcher clean``: remove what ended runs do not need any more; without ``--yes`` it only says what that is."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.manage.removable import (
    Item,
    Keep,
    has_ended,
    of_run,
    of_sweep,
    states_of_children_to_come,
)
from launcher.manage.states import RunState
from launcher.manage.survey import open_workers, survey
from launcher.manage.targets import merged, named
from launcher.runtime.checkpoint.writing import remove
from launcher.runtime.errors import ExitCode, UserError, say_error
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.sizes import told

_SHOWN = 3
"""Most names in a line."""


@dataclass(frozen=True)
class Wish:
    """What is to be removed."""

    keep: Keep = "all"
    traces: bool = False
    """What profilers recorded, too."""
    really: bool = False
    """Remove it; else only say what would go."""


def clean(words: Sequence[str], cwd: Path, env: Mapping[str, str], wish: Wish, *, as_json: bool = False) -> int:
    """Remove, or say, what the runs and sweeps that ``words`` stand for do not need any more.

    Of runs that are queued or running nothing is touched, nor of a run that a process has locked. What stays of a run
    is read first: where it is damaged, all of the run's checkpoints stay.

    Returns:
        The exit code: DONE, or USER_ERROR where something could not be removed or had to stay.

    Raises:
        UserError: a word stands for no run, or Slurm does not answer: then it is not known what runs.
    """
    targets = [target for word in words for target in named(word, cwd)]
    whole = {target.sweep.path.resolve() for target in targets if target.runs is None}
    seen = survey(merged(targets), env)
    if seen.problems:
        raise UserError(f"{seen.problems[0]}; nothing was removed")
    sweeps: dict[SweepDir, list[RunState]] = {}
    for sweep, state in seen.rows:
        sweeps.setdefault(sweep, []).append(state)
    cleaner = _Cleaner(wish, env)
    for sweep, states in sweeps.items():
        cleaner.clean(sweep, states, whole=sweep.path.resolve() in whole)
    cleaner.tell(as_json)
    return ExitCode.USER_ERROR if cleaner.problems else ExitCode.DONE


class _Cleaner:
    """Goes over sweeps one after the other, and keeps what it found and removed."""

    def __init__(self, wish: Wish, env: Mapping[str, str]) -> None:
        self.problems = 0
        self._wish, self._env = wish, env
        self._found: list[tuple[Path, Item]] = []
        self._left: Counter[str] = Counter()
        self._needed: set[Path] = set()

    def clean(self, sweep: SweepDir, states: Sequence[RunState], *, whole: bool) -> None:
        """One sweep, or some runs of it; its lock is held, so that no command begins one of them meanwhile."""
        try:
            with sweep.locked() if self._wish.really else nullcontext():
                self._go_over(sweep, states, whole)
        except UserError as error:
            self._say(error)

    def _go_over(self, sweep: SweepDir, states: Sequence[RunState], whole: bool) -> None:
        self._needed = set(states_of_children_to_come(sweep))
        for state in states:
            if not has_ended(state):
                self._left[state.state] += 1
                continue
            try:
                self._run(RunDir(Path(state.path)), state)
            except UserError as error:
                self._say(error)
        if whole:
            idle = not any(state.is_active for state in states) and not open_workers(sweep, self._env)
            self._remove(sweep.path, of_sweep(sweep, states, idle=idle))

    def _run(self, rundir: RunDir, state: RunState) -> None:
        if not self._wish.really:
            self._remove(rundir.path, self._of_run(rundir, state))
            return
        with rundir.lock():  # who trains it now, whatever was seen a moment ago, holds it
            self._remove(rundir.path, self._of_run(rundir, state))
            if not rundir.list_checkpoints("step"):
                rundir.latest.unlink(missing_ok=True)

    def _of_run(self, rundir: RunDir, state: RunState) -> list[Item]:
        wish = self._wish
        done = state.state == "COMPLETED"
        found = of_run(rundir, wish.keep, traces=wish.traces, completed=done, checksums=wish.really)
        return [item for item in found if item.path.resolve() not in self._needed]

    def _remove(self, of: Path, items: Sequence[Item]) -> None:
        for item in items:
            try:
                if self._wish.really:
                    _remove(item)
                self._found.append((of, item))
            except OSError as error:
                self._say(UserError(f"{item.path}: cannot be removed ({error.strerror or error})"))

    def _say(self, error: UserError) -> None:
        self.problems += 1
        say_error(error)

    def tell(self, as_json: bool) -> None:
        """What went, or would go, on stdout; how much that is in all on stderr."""
        if as_json:
            print(json.dumps([_record(item, self._wish.really) for _, item in self._found], indent=2))
        else:
            for line in self._lines():
                print(line)
        items = [item for _, item in self._found]
        size = f"{told(sum(item.bytes for item in items))} in {sum(item.files for item in items):,} files"
        if self._left:
            left = ", ".join(f"{count} {name}" for name, count in sorted(self._left.items()))
            print(f"left as they are: {left}", file=sys.stderr)
        if not items:
            print("nothing to remove", file=sys.stderr)
        elif self._wish.really:
            print(f"removed {size}", file=sys.stderr)
        else:
            print(f"would remove {size}; nothing was changed, --yes removes it", file=sys.stderr)

    def _lines(self) -> Iterator[str]:
        """A line for each run or sweep and each kind of thing."""
        groups: dict[tuple[Path, str], list[Item]] = {}
        for of, item in self._found:
            groups.setdefault((of, item.kind), []).append(item)
        verb = "removed" if self._wish.really else "would remove"
        for (of, kind), items in groups.items():
            size = told(sum(item.bytes for item in items))
            names = [item.path.name for item in items[:_SHOWN]] + ["…"] * (len(items) > _SHOWN)
            yield f"{verb} {size:>8}  {of}: {len(items)} {kind} ({', '.join(names)})"


def _remove(item: Item) -> None:
    if item.kind == "state":
        remove(RunDir(item.path.parent.parent), item.path)  # whoever looks meanwhile sees all of it or nothing
    elif item.path.is_dir() and not item.path.is_symlink():
        shutil.rmtree(item.path)
    else:
        with suppress(FileNotFoundError):
            item.path.unlink()


def _record(item: Item, removed: bool) -> dict[str, Any]:
    return {"path": str(item.path), "kind": item.kind, "bytes": item.bytes, "files": item.files, "removed": removed}
