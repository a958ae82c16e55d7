"""``launch.continue``: whether runs go on by a requeue or by successors, and submitting those.

An array's successor waits for all of it (``afterany``), as what Slurm has for its elements (``aftercorr``) waits for
their success for ever; each element that ends lets its own go on (``launcher.chain``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import Submission
from launcher.schema import LaunchConfig
from launcher.slurm_cli import Slurm, SlurmError
from launcher.submission.resources import Resources

_DEFAULT = 3


@dataclass(frozen=True)
class Continuation:
    """How runs go on whose jobs are ended."""

    how: Literal["auto", "requeue", "chain"]
    count: int = _DEFAULT
    """Successors of each submission, should it be a chain."""

    @staticmethod
    def of(launch: LaunchConfig) -> Continuation:
        """What ``launch`` asks for."""
        return Continuation(launch.continue_, launch.chain or _DEFAULT)

    def successors(self, shapes: Sequence[Resources], slurm: Slurm) -> list[int]:
        """How many follow each job of each of ``shapes``; says on stderr that there are any, and why.

        Raises:
            SlurmError: Slurm does not answer.
        """
        if self.how == "requeue":
            return [0 for _ in shapes]
        if self.how == "chain":
            reasons: list[str | None] = ["chain" for _ in shapes]
        else:
            found = [forbidden(slurm, shape.queue.get("partition")) for shape in shapes]
            reasons = [f"auto: {why}, so runs go on by a chain" if why else None for why in found]
        followed = "1 successor" if self.count == 1 else f"{self.count} successors"
        for reason in dict.fromkeys(reason for reason in reasons if reason):
            print(f"launch.continue={reason}: {followed} for each job (launch.chain)", file=sys.stderr)
        return [self.count if reason else 0 for reason in reasons]


REQUEUE = Continuation("requeue")


def forbidden(slurm: Slurm, partition: str | None) -> str | None:
    """The setting by which the cluster does not requeue jobs of ``partition`` (several: ``a,b``); None: it does.

    Args:
        partition: None: the default one.

    Raises:
        SlurmError: Slurm does not answer.
    """
    config = slurm.config()
    if config.get("JobRequeue") == "0":
        return "JobRequeue=0"
    if config.get("PreemptType", "preempt/none") == "preempt/none":
        return None
    asked = partition.split(",") if partition else None
    for name, settings in slurm.partitions().items():
        if name in asked if asked else settings.get("Default") == "YES":
            mode = settings.get("PreemptMode") or config.get("PreemptMode", "OFF")
            if "CANCEL" in mode.split(","):
                return f"PreemptMode=CANCEL of partition {name}"
    return None


def follow(heads: Sequence[Submission], count: int, send: Callable[[Submission, Submission], Submission]) -> None:
    """Submit ``count`` successors of each of ``heads``, the first ones of all first.

    Args:
        send: submits one that waits for its first argument, and goes on with what its second one, the head, began.
    """
    last = list(heads)
    for number in range(count):
        for index, head in enumerate(heads):
            try:
                last[index] = send(last[index], head)
            except SlurmError as error:  # what was asked for is queued: it can only go on less often
                print(f"{number} of {count} successors of job {head.job_id} are queued: {error}", file=sys.stderr)
                return


def require_no_chain(launch: LaunchConfig, launcher: str) -> None:
    """See that ``launch`` asks for no successors where there is no Slurm to have them.

    Raises:
        UserError: it does.
    """
    asked = {"launch.continue=chain": launch.continue_ == "chain", f"launch.chain={launch.chain}": bool(launch.chain)}
    if said := next((key for key, is_so in asked.items() if is_so), None):
        raise UserError(
            f"{said}: successors are jobs of Slurm; leave it out with hydra/launcher={launcher}, or use "
            "hydra/launcher=submitit_slurm"
        )


def hint(error: SlurmError) -> str:
    """What to do about a time limit that Slurm does not grant; else nothing."""
    if "time limit" not in str(error).lower():
        return ""
    return "; ask for at most the partition's MaxTime (hardware.time_min): a run goes on where its job's time is over"
