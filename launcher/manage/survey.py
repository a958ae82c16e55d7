"""The state of runs of many sweeps: their files, and one look at each cluster that they were submitted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.manage.own_files import OwnFiles, own_files
from launcher.manage.states import RunState, SlurmsWord, ask, row
from launcher.manage.targets import Target
from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import Submission, SweepDir
from launcher.slurm_cli import Slurm
from launcher.slurm_text import QueuedJob

OVER = (
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED",
)  # fmt: skip
"""Slurm's states of a job that does not run again (squeue(1), JOB STATE CODES)."""


@dataclass(frozen=True)
class Survey:
    """What became of many runs."""

    rows: list[tuple[SweepDir, RunState]]
    problems: tuple[str, ...]
    """Why Slurm could not be asked, where it was needed: the rows then tell what our own files say."""

    @property
    def states(self) -> list[RunState]:
        """The rows alone."""
        return [state for _, state in self.rows]


def survey(targets: Iterable[Target], env: Mapping[str, str]) -> Survey:
    """Look at the runs of ``targets``: one squeue, and at most one sacct, for each cluster.

    ``SLURM_CONF`` of ``env`` is stronger than what the runs were submitted with. A Slurm that is away is asked once.
    """
    runs = [(target.sweep, own) for target in targets for own in own_files(target.sweep, target.runs)]
    by_cluster: dict[str | None, list[OwnFiles]] = {}
    for _, own in runs:
        by_cluster.setdefault(cluster_of(own.slurm_conf, env), []).append(own)
    words: dict[str | None, SlurmsWord] = {}
    problems: list[str] = []
    for cluster, owns in by_cluster.items():
        try:
            words[cluster] = ask(Slurm(env, cluster, patient=False), owns)
        except UserError as error:
            words[cluster] = SlurmsWord()
            problems.append(str(error))
    rows = [(sweep, row(own, words[cluster_of(own.slurm_conf, env)])) for sweep, own in runs]
    return Survey(rows, tuple(problems))


def look_again(before: Survey, targets: Iterable[Target], env: Mapping[str, str]) -> Survey:
    """``survey`` once more, for who watches: of runs that were COMPLETED ``before`` no file is read again."""
    done = {(sweep.path, state.run_id): state for sweep, state in before.rows if state.state == "COMPLETED"}
    wanted = [(target.sweep, target.run_ids) for target in targets]
    left = [Target(sweep, tuple(r for r in runs if (sweep.path, r) not in done)) for sweep, runs in wanted]
    now = survey([target for target in left if target.runs], env)
    known = done | {(sweep.path, state.run_id): state for sweep, state in now.rows}
    found = [(sweep, known.get((sweep.path, run))) for sweep, runs in wanted for run in runs]
    return Survey([(sweep, state) for sweep, state in found if state is not None], now.problems)


def open_workers(sweep: SweepDir, env: Mapping[str, str]) -> list[tuple[Submission, list[str]]]:
    """Submissions of workers that find out for themselves what to run, with the names of those that Slurm still has.

    Raises:
        SlurmError: Slurm does not answer; it is not asked where there is no such submission.
    """
    found = []
    for submission in sweep.read_submissions():
        if submission.is_open and submission.job_id and not submission.withdrawn:
            queue = Slurm(env, cluster_of(submission.slurm_conf, env)).queue()
            names = [name for name in submission.job_names() if _lives(queue.get(name), submission)]
            found += [(submission, names)] if names else []
    return found


def _lives(job: QueuedJob | None, submission: Submission) -> bool:
    return job is not None and job.state not in OVER and Path(job.command).stem == submission.token


def cluster_of(slurm_conf: str | None, env: Mapping[str, str]) -> str | None:
    """The ``SLURM_CONF`` by which a submission's cluster is reached; None: the default one."""
    return env.get("SLURM_CONF") or slurm_conf
