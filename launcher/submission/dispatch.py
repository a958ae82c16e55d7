"""From composed members to a queue: Slurm's, or one of processes on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.members import Member, require_one_launcher
from launcher.naming import default_name
from launcher.plan import make_queued_plan, read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.sections import typed_as
from launcher.runtime.sweepdir import SweepDir
from launcher.schema import LaunchConfig
from launcher.slurm_cli import Slurm, require_slurm
from launcher.submission.commit import Wanted, run_here, to_slurm
from launcher.submission.goal import Goal, require_same_sweep, say_merged
from launcher.submission.jobs import Job
from launcher.submission.packing import Packing, without_extras
from launcher.submission.reconcile import Rule
from launcher.submission.runnable import require_runnable
from launcher.submission.snapshot import Snapshot, take_snapshot, top_level
from launcher.submission.successors import Continuation, require_no_chain
from launcher.submission.variables import say_hints

LOCAL = "submitit_local"
"""The ``hydra/launcher`` that runs jobs as processes on this machine."""
_PACKAGE = __name__.partition(".")[0]


def dispatch(
    members: Sequence[Member],
    env: Mapping[str, str],
    cwd: Path,
    *,
    values_needed: bool = False,
    rule: Rule | None = None,
    goal: Goal | None = None,
) -> list[Any]:
    """Plan ``members`` and hand them to the queue that they choose.

    Args:
        cwd: the folder in which the command was typed.
        values_needed: wait for the runs whatever ``launch.wait`` says: a search goes on with their values.
        rule: which runs that have ended are run again; None: as ``launch.retry`` says.
        goal: of a named sweep.

    Returns:
        For each member its metric where it was waited for, else its job's id, or None where it has none.

    Raises:
        UserError: a member cannot be planned or queued, or a run that was waited for failed.
    """
    here = require_one_launcher(members) == LOCAL
    launch = _launch_config(members)
    continuation = _continuation(launch, env, here)
    sweep = _sweep_dir(launch, members[0], cwd)
    if goal is not None and (doubt := goal.doubt()):
        print(doubt, file=sys.stderr)
    require_same_sweep(sweep, goal, [member.values["task"]["target"] for member in members])
    snapshot = snapshot_of(sweep, names_of(members), cwd)
    packing = Packing.of(launch)
    jobs = [_job(member, sweep, snapshot, cwd, here, packing) for member in members]
    unique = _unique(jobs)
    _say_first(unique, packing, here)
    env = snapshot.without_live_code(env)
    slurm = None if here else Slurm(env, slurm_conf_of(unique[0], cwd))
    logs = _logs(sweep, members[0], cwd)
    wanted = Wanted(sweep, unique, snapshot, logs, cwd, rule or Rule.of(launch.retry), packing, goal, continuation)
    require_runnable(wanted, env)
    if launch.dry_run:
        from launcher.submission.dry_run import show

        show(sweep, unique, snapshot, slurm, logs, wanted.rule, packing, continuation, launch.parallel)
        return [None] * len(jobs)
    if slurm is None:
        metrics: Mapping[str, Any] = run_here(wanted, launch.parallel, env)
        return _values(jobs, metrics, goal)
    receipts = to_slurm(wanted, slurm)
    if launch.wait or values_needed:
        from launcher.submission.waiting import wait_for

        metrics = wait_for(sweep, list(receipts), slurm)
        return _values(jobs, metrics, goal)
    return [receipts[job.plan.run_id].job_id for job in jobs]


def names_of(members: Sequence[Member]) -> list[str]:
    """What jobs import from the copy of the code."""
    named = (member.values["task"].get(key) for member in members for key in ("target", "schema"))
    return sorted({name for name in named if name})


def _unique(jobs: Sequence[Job]) -> list[Job]:
    """Members that learn the same are one run, the first one's."""
    unique = list({job.plan.run_id: job for job in reversed(jobs)}.values())[::-1]
    if len(unique) < len(jobs):
        say_merged(len(jobs) - len(unique), len(jobs))
    return unique


def _say_first(jobs: Sequence[Job], packing: Packing | None, here: bool) -> None:
    """What may be other than was thought.

    Raises:
        UserError: programs are to be packed.
    """
    say_hints(jobs[0].resources.site, here=here)
    if packing is None:
        return
    if any(job.plan.argv is not None for job in jobs):
        raise UserError(
            f"launch.pack={packing.per_job}: members are forked from a process that has imported their function, and "
            "task=command has a program; leave launch.pack out"
        )
    if alone := sum(not packing.takes(job.resources.hardware) for job in jobs):
        print(f"launch.pack: {alone} runs have several ranks and jobs of their own", file=sys.stderr)


def snapshot_of(sweep: SweepDir, names: Sequence[str], cwd: Path, root: Path | None = None) -> Snapshot:
    """Today's code for jobs of ``sweep`` that resolve ``names`` (``package.module:attribute``).

    Args:
        root: the folder of all runs; None: that in which the sweep stands.

    Raises:
        UserError: as ``take_snapshot``.
    """
    return take_snapshot(sweep.code, cwd, [_PACKAGE, *top_level(names)], leave_out=root or sweep.path.parent)


def _values(jobs: Sequence[Job], metrics: Mapping[str, Any], goal: Goal | None) -> list[Any]:
    """The metric of each run that was waited for: the one that the sweep is after."""
    return [metrics.get(job.plan.run_id) if goal is None else goal.value(job.plan.rundir) for job in jobs]


def _launch_config(members: Sequence[Member]) -> LaunchConfig:
    for name in typed_as(LaunchConfig).values():
        found = {str(member.values["launch"].get(name)) for member in members}
        if len(found) > 1:
            raise UserError(f"launch.{name}: differs between members ({', '.join(sorted(found))}); launch them apart")
    return read_sections(members[0].values).launch


def _continuation(launch: LaunchConfig, env: Mapping[str, str], here: bool) -> Continuation:
    """How runs go on; sees that what it takes is there."""
    if here:
        require_no_chain(launch, LOCAL)
    else:
        require_slurm(env)
    return Continuation.of(launch)


def _sweep_dir(launch: LaunchConfig, first: Member, cwd: Path) -> SweepDir:
    return SweepDir(_absolute("launch.root", launch.root, cwd) / (launch.name or default_name(first.choices)))


def _absolute(key: str, said: str, cwd: Path) -> Path:
    try:
        return cwd / Path(said).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={said}: {error}") from None


def _job(member: Member, sweep: SweepDir, snapshot: Snapshot, cwd: Path, here: bool, packing: Packing | None) -> Job:
    plan, resources = make_queued_plan(
        member.values, member.queue, default_name=sweep.path.name, cwd=cwd, code=snapshot.id, here=here,
        overrides=member.words, parent=member.parent,
    )  # fmt: skip
    if packing and packing.takes(resources.hardware):
        plan = without_extras(plan)
    return Job(plan, resources, member.overrides)


def slurm_conf_of(job: Job, cwd: Path) -> str | None:
    """The site's ``SLURM_CONF``; one that is not there is that of a cluster that was never started."""
    said = job.resources.site.slurm_conf
    if said is None:
        return None
    path = _absolute("site.slurm_conf", said, cwd)
    if not path.exists():
        raise UserError(f"site.slurm_conf={said}: there is no such file; is the cluster up? (python -m slurm up)")
    return str(path)


def _logs(sweep: SweepDir, first: Member, cwd: Path) -> Path:
    """Where jobs print to: ``hydra.launcher.submitit_folder`` up to the part that holds a job's number."""
    said = first.queue.get("submitit_folder")
    if said is None:
        return sweep.job_logs
    parts = Path(said).parts
    numbered = next((i for i, part in enumerate(parts) if "%" in part), len(parts))
    return _absolute("hydra.launcher.submitit_folder", str(Path(*parts[:numbered])), cwd)
