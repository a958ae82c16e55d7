"""Why a job waits, in plain words: Slurm's reason codes, each with what it means and what can be done.

Source: squeue(1), JOB REASON CODES, of Slurm 22.05, and slurm.h (``enum job_state_reason``) for those it leaves out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One of Slurm's reasons."""

    means: str
    remedy: str
    by_shape: bool = False
    """Whether a job that asks for less may start sooner, and Slurm can tell when."""


_LESS = "wait, or ask for less"
_LIMIT = "wait until other jobs of it end, cancel some, or ask your admins for a higher limit"
_NEVER = "it never starts as it is: cancel it and ask for less"
_ADMINS = "ask your admins"

_REASONS = {
    "Resources": Reason("what it asks for is not free yet", _LESS, by_shape=True),
    "Priority": Reason("other jobs of this partition come first", _LESS, by_shape=True),
    "None": Reason("Slurm has not looked at it yet", "look again in a minute", by_shape=True),
    "WaitingForScheduling": Reason("Slurm has not looked at it yet", "look again in a minute", by_shape=True),
    "BeginTime": Reason("its earliest begin has not come: a requeued job waits a while first", "wait"),
    "Dependency": Reason("it waits for another job to end", "see which: scontrol show job"),
    "DependencyNeverSatisfied": Reason("what it waits for has ended otherwise", "cancel it and launch it again"),
    "JobHeldUser": Reason("you have held it", "scontrol release JOB"),
    "JobHeldAdmin": Reason("an admin has held it", _ADMINS),
    "JobHoldMaxRequeue": Reason("it was requeued too often and is held", "see logs, then scontrol release JOB"),
    "JobArrayTaskLimit": Reason(
        "as many elements of its array run as may", "wait, or raise hydra.launcher.array_parallelism"
    ),
    "Licenses": Reason("a license that it asks for is taken", "wait"),
    "Reservation": Reason("its reservation has not begun", "wait, or leave the reservation away"),
    "ReservationDeleted": Reason("its reservation is gone", "cancel it and launch it without"),
    "ReqNodeNotAvail": Reason("a node that it needs is down, drained or reserved", _LESS, by_shape=True),
    "NodeDown": Reason("a node that it needs is down", _LESS, by_shape=True),
    "PartitionDown": Reason("its partition is closed for new starts", "wait, or take another partition", by_shape=True),
    "PartitionInactive": Reason("its partition is closed", "take another partition", by_shape=True),
    "PartitionNodeLimit": Reason("it asks for more nodes than its partition has or gives", _NEVER, by_shape=True),
    "PartitionConfig": Reason("it asks for more or less than its partition gives", _NEVER, by_shape=True),
    "DeadLine": Reason("its deadline cannot be met", "cancel it and launch it without"),
    "JobLaunchFailure": Reason("it could not be started on its nodes", "see logs"),
    "PartitionTimeLimit": Reason("its time limit is longer than its partition's", _NEVER, by_shape=True),
    "BadConstraints": Reason("no node is as it asks (constraint)", "cancel it and change the constraint"),
    "InvalidAccount": Reason("its account is not valid", "cancel it and choose another: site.account"),
    "InvalidQOS": Reason("its quality of service is not valid", "cancel it and choose another: site.qos"),
    "AccountNotAllowed": Reason("its account may not use this partition", "take another partition or account"),
    "QOSNotAllowed": Reason("its quality of service may not use this partition", "take another partition or qos"),
    "QOSUsageThreshold": Reason("the usage of its quality of service is too high", "wait, or take another qos"),
    "QOSTimeLimit": Reason("its quality of service has used up its time", "wait, or take another qos"),
    "QOSResourceLimit": Reason("its quality of service has reached a limit", _LIMIT),
    "QOSJobLimit": Reason("its quality of service runs as many jobs as it may", _LIMIT),
    "QOSMinGRES": Reason("it asks for fewer GPUs than its quality of service wants", "ask for more, or another qos"),
    "AssociationJobLimit": Reason("its account or user runs as many jobs as it may", _LIMIT),
    "AssociationResourceLimit": Reason("its account or user has reached a limit", _LIMIT),
    "AssociationTimeLimit": Reason("its account or user has used up its time", _ADMINS),
    "TimeLimit": Reason("it has used up its time limit", "see logs; it goes on when it is resumed"),
    "InactiveLimit": Reason("it was inactive for too long", _ADMINS),
    "Cleaning": Reason("its earlier start is being cleared up", "wait"),
    "Prolog": Reason("its nodes are being prepared", "wait"),
    "FrontEndDown": Reason("no front end node is there to run it", _ADMINS),
    "NonZeroExitCode": Reason("it ended with an error", "see logs"),
    "SystemFailure": Reason("a part of Slurm has failed", _ADMINS),
    "launch failed requeued held": Reason("its start failed, and it is held", "see logs, then scontrol release JOB"),
}  # fmt: skip

_FAMILIES = (
    (r"(QOS|Assoc)MaxWall", Reason("its time limit is longer than its account or quality of service allows", _NEVER)),
    (r"(QOS|Assoc)Max\w*PerJob", Reason("it asks for more than one job may have", _NEVER)),
    (r"(QOS|Assoc)?Max(Submit)?Jobs?", Reason("as many jobs run or wait as its user or account may have", _LIMIT)),
    (r"QOSMax", Reason("it would exceed what its user or account may have in its quality of service", _LIMIT)),
    (r"QOSMin", Reason("it asks for less than its quality of service wants", "ask for more, or take another qos")),
    (r"QOSGrp", Reason("all jobs of its quality of service together have reached a limit", _LIMIT)),
    (r"AssocGrp", Reason("all jobs of its account together have reached a limit", _LIMIT)),
    (r"MaxMemPerLimit", Reason("it asks for more memory for each CPU or node than is allowed", _NEVER)),
    (r"AssocMax|Max\w+Per|AccountingPolicy", Reason("it would exceed what its user or account may have", _LIMIT)),
    (r"BurstBuffer", Reason("its burst buffer is being prepared, or cannot be had", "wait; scontrol show burst")),
    (r"Nodes required for job are", Reason("nodes that it needs are down, drained or reserved", _LESS, by_shape=True)),
)  # fmt: skip
"""By how the code begins, a regular expression; the first one that fits."""


def explained(code: str) -> Reason:
    """What Slurm's ``code`` means; ``ReqNodeNotAvail, UnavailableNodes:n1`` is told by what stands before the comma."""
    name = code.replace("_", " ").strip("() ").partition(",")[0].strip() or "None"
    found = _REASONS.get(name) or next((reason for begin, reason in _FAMILIES if re.match(begin, name)), None)
    return found or Reason(f"Slurm says {name}", "look it up: man squeue, JOB REASON CODES")
