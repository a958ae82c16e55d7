"""``launcher resume`` and ``launcher retry``: go on with runs that are over and not done, from their last checkpoints.

Each is composed anew from what was typed when it was planned, in the folder in which that was typed, and goes the way
that it went: to Slurm, to the local queue, or into this process. It takes today's code; Slurm's own requeue does not.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from launcher.manage.recorded import (
    Again,
    Launched,
    compose_again,
    last_launched,
    require_recorded,
    require_same_science,
)
from launcher.manage.states import RunState
from launcher.manage.survey import cluster_of, survey
from launcher.manage.targets import Target, merged, named, one_run
from launcher.runtime.errors import ExitCode, UserError, say_error
from launcher.runtime.plan import Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir

_BASIC = "basic"
_QUEUES = ("submitit_slurm", "submitit_local")
_RETRIED = ("FAILED", "PREEMPTED", "STALLED", "RUNNING")
"""States of runs that ``retry`` takes of a folder, where nothing is there for them any more."""
_STOPPED = (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED)

Row = tuple[SweepDir, RunState]


def resume(words: Sequence[str], cwd: Path, env: MutableMapping[str, str]) -> int:
    """Go on with each run that ``words`` stand for; one that is done or active is left as it is.

    Returns:
        The exit code: DONE, also where nothing was to be done, or the worst of what was trained here.

    Raises:
        UserError: a word stands for no run or for several, Slurm does not answer, or a run would be another one today.
    """
    runs = [one_run(word, cwd) for word in words]
    return _go_on(over([Target(absolute(sweep), (run,)) for sweep, run in runs], env), env)


def retry(words: Sequence[str], cwd: Path, env: MutableMapping[str, str], *, dry_run: bool = False) -> int:
    """Go on with what failed or stopped of the sweeps, and with the runs, that ``words`` stand for.

    Of a folder those that were cancelled stay so, and those that were never begun; a run that is named is taken.

    Args:
        dry_run: only say which, after the same checks.

    Returns:
        As ``resume``.

    Raises:
        UserError: as ``resume``.
    """
    targets = [Target(absolute(t.sweep), t.runs) for word in words for t in named(word, cwd)]
    return _go_on(over(targets, env), env, dry_run=dry_run)


def absolute(sweep: SweepDir) -> SweepDir:
    """The same from whatever folder: the runs go on in another one than this."""
    return SweepDir(sweep.path.absolute())


def over(targets: Sequence[Target], env: MutableMapping[str, str]) -> list[Row]:
    """Those that are to go on; says what the others are.

    Raises:
        UserError: Slurm does not answer.
    """
    asked = {(t.sweep.path.resolve(), run) for t in targets for run in t.runs or ()}
    seen = survey(merged(targets), env)
    if seen.problems:
        raise UserError(f"{seen.problems[0]}; nothing was started")
    chosen: list[Row] = []
    left: Counter[str] = Counter()
    for sweep, state in seen.rows:
        by_name = (sweep.path.resolve(), state.run_id) in asked
        active = is_active(state)
        if state.state != "COMPLETED" and not active and (by_name or state.state in _RETRIED):
            chosen.append((sweep, state))
        elif by_name:
            job = f" (job {state.job_id})" if active and state.job_id else ""
            print(f"{state.state} already: {state.path}{job}")
        else:
            left[state.state] += 1
    if left:
        told = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        hint = "; name a CANCELLED or PLANNED run to take it" if left["CANCELLED"] or left["PLANNED"] else ""
        print(f"left as they are: {told}{hint}", file=sys.stderr)
    if not chosen and not asked:
        print("nothing to retry", file=sys.stderr)
    return chosen


def is_active(state: RunState) -> bool:
    """Whether a job or a process is there for it: asked of the lock where its own files alone say so."""
    if state.job_id is None and state.state == "RUNNING":
        return RunDir(Path(state.path)).is_locked()  # its process may have been killed a second ago
    return state.is_active


def _go_on(rows: Sequence[Row], env: MutableMapping[str, str], *, dry_run: bool = False) -> int:
    """Compose, check and launch runs; nothing is launched where one of them does not fit."""
    if not rows:
        return ExitCode.DONE
    launched = _launched(rows)
    folder = require_recorded(launched)
    go_to(folder)
    runs = compose_again(launched)
    require_same_science(runs, [plan_today(run, folder) for run in runs])
    if dry_run:
        for _, state in rows:
            print(f"would retry {state.state:<10} {state.path}  {' '.join(state.overrides)}".rstrip())
        return ExitCode.DONE
    return launch(runs, folder, env)


def _launched(rows: Sequence[Row]) -> list[Launched]:
    """How each run was last launched; the files of a sweep are read once."""
    ids: dict[SweepDir, list[str]] = {}
    for sweep, state in rows:
        ids.setdefault(sweep, []).append(state.run_id)
    found = {(s, run): one for s, runs in ids.items() for run, one in zip(runs, last_launched(s, runs), strict=True)}
    return [found[sweep, state.run_id] for sweep, state in rows]


def go_to(folder: Path) -> None:
    """Be where the command was typed: for relative paths, and for the user's own modules, which stand there."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; the command was typed there: bring the folder back") from None
    if sys.path[0] != str(folder):
        sys.path.insert(0, str(folder))


def plan_today(run: Again, cwd: Path) -> Plan:
    """What ``run`` would be planned as now.

    Raises:
        UserError: it cannot be planned, or goes by a launcher that is not ours.
    """
    from launcher.plan import make_plan, make_queued_plan
    from launcher.submission.dispatch import LOCAL

    member = run.member
    if member.launcher == _BASIC:
        return make_plan(member.values, default_name=run.old.sweep.path.name, cwd=cwd, parent=member.parent)
    if member.launcher not in _QUEUES:
        raise UserError(
            f"hydra/launcher={member.launcher}: cannot be retried (allowed: {', '.join(_QUEUES)}, {_BASIC})"
        )
    here = member.launcher == LOCAL
    name = run.old.sweep.path.name
    return make_queued_plan(
        member.values, member.queue, default_name=name, cwd=cwd, code=None, here=here, parent=member.parent
    )[0]


def _groups(runs: Sequence[Again]) -> list[list[Again]]:
    """Runs that can be launched at once: of one sweep, by one launcher, in the same manner."""
    groups: dict[Any, list[Again]] = {}
    for run in runs:
        member = run.member
        cluster = (run.old.slurm_conf, member.values["site"].get("slurm_conf"))
        launch = member.values["launch"]
        keys = ("parallel", "pack", "beside", "continue", "chain")
        manner = (*(launch.get(key) for key in keys), member.queue.get("submitit_folder"))
        key = (run.old.sweep, member.launcher, *cluster, *manner)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def launch(runs: Sequence[Again], cwd: Path, env: MutableMapping[str, str]) -> int:
    """Hand ``runs`` to their queues, or train them here; returns the worst exit code."""
    codes: list[int] = [ExitCode.DONE]
    for group in _groups(runs):
        try:
            codes.append(_launch_group(group, cwd, env))
        except UserError as error:  # the others still run
            say_error(error)
            codes.append(error.code)
        if codes[-1] in _STOPPED:
            break
    return max(codes)


def _launch_group(group: Sequence[Again], cwd: Path, env: MutableMapping[str, str]) -> int:
    if group[0].member.launcher == _BASIC:
        return _train_here(group, env)
    from launcher.submission.dispatch import dispatch
    from launcher.submission.reconcile import Rule

    cluster = cluster_of(group[0].old.slurm_conf, env)
    env_of = {**env, **({"SLURM_CONF": cluster} if cluster else {})}
    dispatch([run.member for run in group], env_of, cwd, rule=Rule(failed=True))
    return ExitCode.DONE


def _train_here(group: Sequence[Again], env: MutableMapping[str, str]) -> int:
    """One after the other, as ``launcher.run`` does."""
    from launcher.run import train
    from launcher.runtime.signals import StopFlag
    from launcher.runtime.world import set_defaults
    from launcher.submission.reconcile import Rule

    set_defaults(env)
    stop = StopFlag()
    stop.install()
    codes: list[int] = []
    for run in group:
        if stop:
            print(f"stopped: {len(group) - len(codes)} runs did not go on; the same command does", file=sys.stderr)
            return max(*codes, ExitCode.STOPPED_SAVED)
        try:
            codes.append(train(run.member, stop, Rule(failed=True)).code)
        except UserError as error:
            say_error(error)
            codes.append(error.code)
    return max(codes)
