"""``hydra/launcher=basic``: what is decided about runs that this process trains itself, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from launcher.members import Member
from launcher.naming import default_name
from launcher.plan import make_plan, read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Plan
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.dispatch import snapshot_of
from launcher.submission.reconcile import Decision, Rule, decisions, tell
from launcher.submission.successors import require_no_chain


def rule_of(member: Member) -> Rule:
    """As ``launch.retry`` says.

    Raises:
        UserError: the config does not fit its schema.
    """
    return Rule.of(read_sections(member.values).launch.retry)


def require_no_jobs(member: Member) -> None:
    """See that nothing is asked for that only jobs have: to share members (``launch.pack``), to go on by a chain.

    Raises:
        UserError: it is.
    """
    require_no_chain(read_sections(member.values).launch, "basic")
    if (pack := member.values["launch"].get("pack")) is not None:
        raise UserError(
            f"launch.pack={pack}: is for jobs that share members, and hydra/launcher=basic has none; on this machine "
            "choose hydra/launcher=submitit_local"
        )


def foretell(members: Sequence[Member]) -> None:
    """Say on stderr what will be done about all of ``members`` before the first one is begun.

    Raises:
        UserError: they ask for what only jobs have.
    """
    require_no_jobs(members[0])
    sweeps: dict[SweepDir, dict[str, Plan]] = {}
    for member in members:
        with suppress(UserError):  # said when its turn comes: the others still run
            plan = make_plan(member.values, default_name=default_name(member.choices), cwd=Path.cwd())
            sweeps.setdefault(_sweep_of(plan), {})[plan.run_id] = plan
    for sweep, plans in sweeps.items():
        with suppress(UserError):  # a folder that is another run's, or cannot be read: the same
            code = next((code for plan in plans.values() if (code := _code_today(plan))), None)
            tell(sweep, decisions(sweep, list(plans.values()), rule_of(members[0]), code))


def decide_here(plan: Plan, rule: Rule) -> Decision:
    """What is to be done about the run of ``plan``.

    Raises:
        UserError: it has ended and belongs to another config.
    """
    (decision,) = decisions(_sweep_of(plan), [plan], rule, _code_today(plan))
    return decision


def _code_today(plan: Plan) -> str | None:
    """Id of today's snapshot where the run was made from one: a run of this process records none of its own."""
    if (plan.rundir.read(plan.rundir.plan) or {}).get("code") is None:
        return None
    return _snapshot_id(_sweep_of(plan), (plan.target, *([plan.schema] if plan.schema else [])))


def _sweep_of(plan: Plan) -> SweepDir:
    return SweepDir(plan.rundir.path.parent)


@cache
def _snapshot_id(sweep: SweepDir, names: tuple[str, ...]) -> str:
    return snapshot_of(sweep, names, Path.cwd()).id
