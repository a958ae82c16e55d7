"""``python -m sweeps study``: search with Optuna, by workers that ask, train and tell."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DESCRIPTION = """\
Search the space of a sweep's file (its sections 'search' and 'study') with Optuna.

  python -m sweeps study seemore_search                                    one worker, in this process
  python -m sweeps study seemore_search hydra/launcher=submitit_local      several processes here
  python -m sweeps study seemore_search hydra/launcher=submitit_slurm --workers 8     an array of jobs
  python -m sweeps study seemore_search --show                             what it has found so far

The same command goes on with a study that was stopped; a larger --trials extends it.
"""


def add_study(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` what the command takes."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("name", metavar="NAME|FILE.yaml", help="a named sweep with a section 'search'")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as for launcher.run: model=tiny optim.lr=1e-3"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes or jobs (4; with hydra/launcher=basic 1)")
    parser.add_argument("--trials", type=int, metavar="N", help="trials in all (the file's study.n_trials)")
    parser.add_argument("--timeout", type=float, metavar="MIN", help="no new trial after so many minutes")
    parser.add_argument("--storage", choices=("journal", "sqlite"), help="where Optuna keeps the study (journal)")
    parser.add_argument("--show", action="store_true", help="print the state of the study, and change nothing")
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    from sweeps.study.command import Asked, study

    return study(Asked.of(args), os.environ, Path.cwd())
