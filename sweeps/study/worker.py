"""A study worker's door: ``python -uP -m sweeps.study.worker PLANS`` runs trials until the study is over.

PLANS holds one plan, what all trials have in common; beside it stands the study as it was when the worker was started.
More workers may be started by hand on the same file at any time, anywhere that sees the folder.
"""

from __future__ import annotations

import argparse
import os
import sys

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.pack.crew import Claim
from launcher.runtime.pack.queue import Queue
from launcher.runtime.pack.worker import admitted, door, work
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from sweeps.study.folder import StudyDir
from sweeps.study.reporter import Reporter
from sweeps.study.storage import require_optuna
from sweeps.study.trials import Trials


def main() -> int:
    """The door; returns its exit code."""
    return door("sweeps.study.worker", _work)


def _work(args: argparse.Namespace, stop: StopFlag) -> int:
    sweep = SweepDir(args.plans.parent.parent.absolute())
    job = admitted(args, sweep)
    return run_trials(StudyDir(sweep), args.plans.stem, job, stop, beside=args.beside, cpus=args.cpus)


def run_trials(folder: StudyDir, token: str, job: str, stop: StopFlag, *, beside: int = 1, cpus: int | None) -> int:
    """Run trials as the worker ``job`` of the command ``token`` until there is none; returns the exit code.

    A trial that failed is told so and is no failure of the worker.

    Raises:
        UserError: there is no such study, or no Optuna.
    """
    require_optuna()
    definition = folder.read(token)
    if definition is None:
        raise UserError(f"{folder.frozen(token)}: there is no such file; type the command of the study again")
    starts = Queue(folder.sweep.queue(token))  # its starts are counted by command, as those of packed workers

    def train(claim: Claim, stop: StopFlag, gpu: str | None) -> int:
        from launcher.runtime.job import run_job

        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        listener = Reporter(folder, definition, int(claim.entry), stop)
        return run_job(claim.plan, os.environ, stop, visible=False, listener=listener).code

    for queue in (starts, folder.queue):
        queue.fill([])
    with starts.joined(job), folder.queue.joined(job):
        source = Trials(folder, definition, job)
        code = work(starts, source, job, stop, beside=beside, cpus=cpus, run=train)
    return ExitCode.DONE if code == ExitCode.TRAINING_FAILED else code


if __name__ == "__main__":
    sys.exit(main())
