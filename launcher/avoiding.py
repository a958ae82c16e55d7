"""Keeping a run's job off the nodes on which it breaks down: the door of a batch script asks, Slurm is told.

A node is excluded only where Slurm would take the job without it: one that no node is left for would wait for ever
(slurmctld holds it, BadConstraints). Slurm takes ``ExcNodeList`` of a job from the moment in which it was requeued on.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.manage.causes import first_task
from launcher.manage.evidence import tail_of
from launcher.runtime.bad_nodes import Culprit, culprit, exclude, exclusions, to_exclude
from launcher.runtime.policy import first_of_start
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway, SlurmError, SubmitLimit


@dataclass(frozen=True)
class NodesOfJob:
    """The nodes of one start of a job that trains one run, as its batch script's door sees them."""

    rundir: RunDir
    sweep: SweepDir
    token: str
    """Of its submission."""
    job: str
    restarts: int
    most: int
    """``requeue.max_excluded``."""
    env: Mapping[str, str]

    def avoided(self) -> list[str]:
        """The nodes that the run avoids; a job that takes this one's place avoids them too."""
        return [one.node for one in exclusions(self.rundir.attempt_events(), self.most)]

    def culprit(self) -> Culprit | None:
        """The node on which this start broke down; None: that cannot be told."""
        first = first_of_start(self.rundir, self.job, self.restarts)
        alone = self.env.get("SLURM_JOB_NUM_NODES") == "1"
        return culprit(first, self.env.get("SLURMD_NODENAME") if alone else None, self._killed_on)

    def _killed_on(self) -> str | None:
        """Where srun saw the first task fail: it has just said so, last of all that was printed."""
        links = (link for head in self.sweep.read_submissions() for link in (head, *head.successors))
        submission = next((link for link in links if link.token == self.token), None)
        if submission is None:
            return None
        errors = self.sweep.job_files(submission, self.job, 0)[0]
        task = first_task(tail_of(errors).rpartition("*** JOB ")[2])  # so slurmstepd ends what an earlier start said
        return task.host if task else None

    def exclude(self, at_fault: Culprit | None, reason: str, slurm: Slurm) -> None:
        """Have the run avoid that node from now on, if it is to be and Slurm has others; written down.

        Raises:
            SlurmAway: Slurm does not answer.
        """
        events = self.rundir.attempt_events()
        found = to_exclude(events, at_fault, reason, self.most)
        if found is None:
            return
        users = slurm.show_job(self.job).get("ExcNodeList", "").replace("(null)", "")
        if refusal := self._refusal(slurm, [*([users] if users else []), *self.avoided(), found.node]):
            print(f"node {found.node} is not excluded: {refusal}", file=sys.stderr, flush=True)
            return
        print(f"node {found.node} is excluded: {found.reason}", file=sys.stderr, flush=True)
        exclude(self.rundir, self.job, found)

    def _refusal(self, slurm: Slurm, nodes: Sequence[str]) -> str:
        """Why Slurm would not take the job without ``nodes``; empty: it would."""
        try:
            slurm.test(self.sweep.script(self.token), [f"--exclude={','.join(nodes)}"])
        except SlurmAway:
            raise
        except SubmitLimit:  # of how many jobs a user has: this one is there
            return ""
        except SlurmError as error:
            return str(error)
        return ""

    def keep_off(self, slurm: Slurm, successor: str | None = None) -> None:
        """Tell Slurm which nodes the run avoids: of this job, just requeued, or of the one that goes on instead.

        Where Slurm refuses, that is said.
        """
        nodes, job = self.avoided(), successor or self.job
        if not nodes:
            return
        try:
            slurm.exclude(job, nodes)
        except SlurmError as error:
            print(f"job {job} may run on {','.join(nodes)} again: {error}", file=sys.stderr, flush=True)

    def stay_alive(self) -> None:
        """Ignore SIGTERM, with which Slurm ends what belongs to a job that it requeues: there is one thing left to say.

        Only where there is; KillWait is time enough for it.
        """
        if self.avoided():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
