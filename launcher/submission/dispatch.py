"""From composed members to a queue: Slurm's, or one of processes on this machine."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.environment import uncommitted
from launcher.members import Member, require_one_launcher
from launcher.named_sweep import as_typed
from launcher.naming import default_name
from launcher.plan import make_queued_plan, read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.files import write_atomic
from launcher.runtime.sweepdir import SweepDir
from launcher.schema import LaunchConfig
from launcher.slurm_cli import Slurm, SlurmAway, require_slurm
from launcher.submission.goal import Goal, only, require_same_sweep, say_merged
from launcher.submission.packing import Packing, without_curves
from launcher.submission.snapshot import Snapshot, take_snapshot, top_level
from launcher.submission.submit import Job, Receipt, claim_folders, require_accepted, submit, told_apart

LOCAL = "submitit_local"
"""The ``hydra/launcher`` that runs jobs as processes on this machine."""
_PACKAGE = __name__.partition(".")[0]
_SHOWN = 20
"""Most runs that are listed one by one."""


def dispatch(
    members: Sequence[Member],
    env: Mapping[str, str],
    cwd: Path,
    *,
    values_needed: bool = False,
    goal: Goal | None = None,
) -> list[Any]:
    """Plan ``members`` and hand them to the queue that they choose.

    Args:
        cwd: the folder in which the command was typed.
        values_needed: wait for the runs whatever ``launch.wait`` says: a search goes on with their values.
        goal: of a named sweep.

    Returns:
        For each member its metric where it was waited for, else its job's id, or None where it has none.

    Raises:
        UserError: a member cannot be planned or queued, or a run that was waited for failed.
    """
    here = require_one_launcher(members) == LOCAL
    launch = _launch_config(members)
    if not here:
        require_slurm(env)
    sweep = _sweep_dir(launch, members[0], cwd)
    require_same_sweep(sweep, goal, [member.values["task"]["target"] for member in members])
    targets = [member.values["task"][key] for member in members for key in ("target", "schema")]
    snapshot = take_snapshot(sweep.code, cwd, [_PACKAGE, *top_level(targets)], leave_out=sweep.path.parent)
    packing = Packing.of(launch)
    jobs = [_job(member, sweep, snapshot, cwd, here, packing) for member in members]
    unique = list({job.plan.run_id: job for job in reversed(jobs)}.values())[::-1]
    if len(unique) < len(jobs):
        say_merged(len(jobs) - len(unique), len(jobs))
    env = snapshot.without_live_code(env)
    slurm = None if here else Slurm(env, _slurm_conf(unique[0], cwd))
    logs = _logs(sweep, members[0], cwd)
    if launch.dry_run:
        from launcher.submission.dry_run import show

        show(sweep, unique, snapshot, slurm, logs)
        return [None] * len(jobs)
    if slurm is None:
        from launcher.submission.local_queue import run_all

        with sweep.locked():  # to the end: another queue would take the same runs
            _record(sweep, unique, snapshot, logs, cwd, goal)
            metrics: Mapping[str, Any] = run_all(sweep, unique, snapshot, launch.parallel, env, logs)
        return _values(jobs, metrics, goal)
    receipts = _to_slurm(sweep, unique, slurm, snapshot, logs, cwd, packing, goal)
    if launch.wait or values_needed:
        from launcher.submission.waiting import wait_for

        metrics = wait_for(sweep, list(receipts), slurm)
        return _values(jobs, metrics, goal)
    return [receipts[job.plan.run_id].job_id for job in jobs]


def _values(jobs: Sequence[Job], metrics: Mapping[str, Any], goal: Goal | None) -> list[Any]:
    """The metric of each run that was waited for: the one that the sweep is after."""
    return [metrics.get(job.plan.run_id) if goal is None else goal.value(job.plan.rundir) for job in jobs]


def _to_slurm(
    sweep: SweepDir,
    jobs: Sequence[Job],
    slurm: Slurm,
    snapshot: Snapshot,
    logs: Path,
    cwd: Path,
    packing: Packing | None,
    goal: Goal | None,
) -> dict[str, Receipt]:
    """Submit, and say what became of it; the receipts by run_id."""
    away: SlurmAway | None = None
    try:
        require_accepted(sweep, jobs, slurm, snapshot, logs)  # what Slurm will never take leaves nothing behind
    except SlurmAway as error:
        away = error
    with sweep.locked() as lock:
        _record(sweep, jobs, snapshot, logs, cwd, goal)
        if away is not None:
            raise SlurmAway(f"{away}; the runs stay planned, the same command submits them")
        receipts = {r.run_id: r for r in submit(sweep, jobs, slurm, snapshot, lock, logs, packing)}
    _say(sweep, jobs, receipts, slurm)
    return receipts


def _launch_config(members: Sequence[Member]) -> LaunchConfig:
    for name in (field.name for field in dataclasses.fields(LaunchConfig)):
        found = {str(member.values["launch"].get(name)) for member in members}
        if len(found) > 1:
            raise UserError(f"launch.{name}: differs between members ({', '.join(sorted(found))}); launch them apart")
    return read_sections(members[0].values).launch


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
        overrides=member.words,
    )  # fmt: skip
    if packing and packing.takes(resources.hardware):
        plan = without_curves(plan)
    return Job(plan, resources, member.overrides)


def _slurm_conf(job: Job, cwd: Path) -> str | None:
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


def _record(sweep: SweepDir, jobs: Sequence[Job], snapshot: Snapshot, logs: Path, cwd: Path, goal: Goal | None) -> None:
    """Write down everything that the jobs will need, and what was asked for."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{logs}: {error.strerror}; jobs print there (hydra.launcher.submitit_folder)") from error
    claim_folders(jobs)
    snapshot.write()
    if (diff_id := jobs[0].plan.environment["diff_id"]) and not sweep.diff(diff_id).exists():
        sweep.diff(diff_id).parent.mkdir(exist_ok=True)
        write_atomic(sweep.diff(diff_id), uncommitted(cwd))
    said = {"command": shlex.join(as_typed(sys.argv[1:])), "target": only(job.plan.target for job in jobs)}
    sweep.add_request(members=len(jobs), code=snapshot.id, **said, **(goal.request() if goal else {}))
    sweep.add_members((job.plan.run_id, job.overrides) for job in jobs)


def _say(sweep: SweepDir, jobs: Sequence[Job], receipts: Mapping[str, Receipt], slurm: Slurm) -> None:
    """Receipts on stdout, what to do next on stderr."""
    new = [receipt for receipt in receipts.values() if receipt.new]
    if len(jobs) <= _SHOWN:
        for run_id, differs in told_apart(jobs).items():
            receipt = receipts[run_id]
            print(f"{receipt.state:<10} {receipt.job_id or '-':<12} {run_id}  {differs}".rstrip())
    else:
        for state in sorted({receipt.state for receipt in receipts.values()}):
            found = [r for r in receipts.values() if r.state == state]
            arrays = sorted({(r.job_id or "-").partition("_")[0] for r in found})
            print(f"{state:<10} {len(found)} runs: {', '.join(arrays[:_SHOWN])}")
    kept = sum(not r.new and r.state != "PLANNED" for r in receipts.values())
    planned = [r for r in receipts.values() if r.state == "PLANNED"]
    print(f"{len(new)} submitted, {kept} done or queued already: {sweep.path}", file=sys.stderr)
    if planned:
        print(
            f"Slurm takes no more for now, {len(planned)} stay PLANNED; the same command submits them "
            f"({planned[0].reason})",
            file=sys.stderr,
        )
    print(f"follow them:  python -m launcher status {shlex.quote(str(sweep.path))}", file=sys.stderr)
