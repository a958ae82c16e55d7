"""``launcher curves``: draw the pictures of runs that have none, as packed members, which save the second it takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.manage.targets import merged, named
from launcher.runtime.curves import draw_curves
from launcher.runtime.errors import ExitCode, UserError, say_error
from launcher.runtime.rundir import RunDir


def curves(words: Sequence[str], cwd: Path) -> int:
    """Draw ``loss_curve.png`` and ``timing_curve.png`` of the runs that ``words`` stand for, where there are none.

    What is there is left as it is. A run without ``metrics.csv``, or with one that has no losses and no
    times, is told on stderr.

    Returns:
        The exit code: DONE, or USER_ERROR where a run's ``metrics.csv`` cannot be read; the others are drawn.

    Raises:
        UserError: a word stands for no run.
    """
    targets = merged(target for word in words for target in named(word, cwd))
    drawn = kept = 0
    code = ExitCode.DONE
    for rundir in [target.sweep.run(run) for target in targets for run in target.run_ids]:
        if rundir.loss_curve.exists():
            kept += 1
            continue
        try:
            names = _draw(rundir)
        except UserError as error:
            say_error(error)
            code = ExitCode.USER_ERROR
            continue
        if names:
            drawn += 1
            print(f"{rundir.path}: {' '.join(names)}")
        else:
            print(f"{rundir.path}: nothing to draw, it has logged no loss (tracker.csv)", file=sys.stderr)
    print(f"drew curves of {drawn} runs, {kept} had them already", file=sys.stderr)
    return code


def _draw(rundir: RunDir) -> list[str]:
    """Draw; returns the names of the pictures.

    Raises:
        UserError: the metrics cannot be read, or no picture can be written.
    """
    try:
        draw_curves(rundir)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{rundir.path}: curves: {error.strerror or error}") from None
    return [path.name for path in (rundir.loss_curve, rundir.timing_curve) if path.exists()]
