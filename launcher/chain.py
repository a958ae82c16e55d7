"""Where one job stands in a chain: jobs of the same run, submitted together, that go on one where the other ends.

For clusters that do not requeue (``launch.continue``). Slurm starts a successor when the job before it has ended,
however it ended (``afterany``); what has to be done then is decided by the doors of the batch script.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from launcher.runtime.sweepdir import Submission, SweepDir
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError

NOT_NEEDED = 80
"""Exit code of ``launcher.successor``: the job has nothing to do."""


@dataclass(frozen=True)
class Chain:
    """A job, and the jobs of the same run before and after it, by Slurm's names."""

    job: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    superseded: bool = False
    """Whether its run was submitted anew since, or moved aside: another job is there for it."""

    @staticmethod
    def of(sweep: SweepDir, token: str | None, job: str, element: int) -> Chain:
        """That of ``job``, element ``element`` (0: a plain job) of the submission ``token`` of ``sweep``."""
        submissions = [one for one in sweep.read_submissions() if not one.withdrawn]
        head = next((one for one in submissions if token in _tokens(one)), None)
        if head is None:
            return Chain(job)
        links = [link for link in (head, *head.successors) if link.token == token or link in head.links]
        here = next(index for index, link in enumerate(links) if link.token == token)
        names = [link.job_names()[element] for link in links]
        return Chain(job, tuple(names[:here]), tuple(names[here + 1 :]), _is_superseded(submissions, head, element))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its jobs, in their order."""
        return (*self.before, self.job, *self.after)

    def hand_on(self, slurm: Slurm | None) -> str | None:
        """The job that goes on where this one ends; None: there is none. It begins when this one alone has ended.

        Args:
            slurm: None: cannot be asked from here, and the first is believed to wait.

        Raises:
            SlurmAway: no answer.
        """
        if slurm is None:
            return next(iter(self.after), None)
        found = next((name for name in self.after if _waits(slurm, name)), None)
        if found is not None and "_" in found:
            self.let_go(slurm, found)
        return found

    def let_go(self, slurm: Slurm, successor: str | None = None) -> None:
        """Have the element of the next array wait for this one alone, not for all of the array that this one is of."""
        name = successor or next(iter(self.after), None)
        if name is not None:
            try:
                slurm.wait_only_for(name, self.job)
            except SlurmError as error:  # it begins later
                print(f"job {name} waits for the whole array: {error}", file=sys.stderr)

    def end(self, slurm: Slurm | None) -> None:
        """Nobody needs to go on: take the successors out of the queue. Where that cannot be they start, and end."""
        if slurm is None or not self.after:
            return
        try:
            slurm.cancel(self.after)
        except SlurmError as error:
            print(f"jobs {' '.join(self.after)} will start, and end at once: {error}", file=sys.stderr)


def _tokens(head: Submission) -> set[str]:
    return {head.token, *(link.token for link in head.successors)}


def _is_superseded(submissions: list[Submission], head: Submission, element: int) -> bool:
    if head.workers is not None:  # any worker takes what waits
        return False
    run = head.runs[element]
    newest = [one for one in submissions if run in one.runs and one.job_id]
    return run in head.replaced or (bool(newest) and newest[-1].token != head.token)


def _waits(slurm: Slurm, job: str) -> bool:
    try:
        return slurm.show_job(job).get("JobState") == "PENDING"
    except SlurmAway:
        raise
    except SlurmError:  # it has left the queue, and Slurm has forgotten it
        return False
