"""``launcher resume RUN KEY=VALUE…``: beyond the config that a run was planned with.

Where the overrides change what is learned they make another run, its *child*, which begins from the run's newest full
state: model, optimizer, random numbers, place in the data. Where they change only how or where, the run itself goes on.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.manage import again
from launcher.manage.recorded import (
    Again,
    as_child,
    compose_again,
    last_launched,
    require_recorded,
    require_same_science,
)
from launcher.manage.survey import survey
from launcher.manage.targets import Target, one_run
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.identity import run_id as id_of
from launcher.runtime.plan import Parent, Plan
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir


def resume(words: Sequence[str], cwd: Path, env: MutableMapping[str, str]) -> int:
    """Go on with the runs among ``words``; with overrides among them, with what these make of the one run.

    Returns:
        As ``again.resume``.

    Raises:
        UserError: as ``again.resume``; overrides for several runs, or that fit no config, change nothing, or ask for
            what the state does not fit; the run has no full state, or may be about to save another one.
    """
    runs, overrides = _apart(words, cwd)
    if not overrides:
        return again.resume(runs, cwd, env)
    if len(runs) != 1:
        raise UserError(f"{overrides[0]}: overrides go with exactly one run, and {len(runs)} are named")
    sweep, run = one_run(runs[0], cwd)
    sweep = again.absolute(sweep)
    launched = last_launched(sweep, [run])
    folder = require_recorded(launched)
    again.go_to(folder)
    as_it_is = compose_again(launched)
    require_same_science(as_it_is, [again.plan_today(as_it_is[0], folder)])
    (changed,) = compose_again(launched, overrides)
    if _asked(changed) == _asked(as_it_is[0]):
        raise UserError(
            f"{' '.join(overrides)}: changes nothing of run {sweep.run(run).path}, which is planned so already; to go "
            "on with it leave the overrides away"
        )
    plan = again.plan_today(changed, folder)
    _require_same_task(launched[0].plan, plan)
    if plan.run_id == run:
        rows = again.over([Target(sweep, (run,))], env)
        return again.launch([changed], folder, env) if rows else ExitCode.DONE
    return _go_on_as_child(changed, plan, folder, env)


def _apart(words: Sequence[str], cwd: Path) -> tuple[list[str], list[str]]:
    """Runs and overrides; a folder with a ``=`` in its name is a run's."""
    overrides = [word for word in words if "=" in word and not (cwd / Path(word).expanduser()).exists()]
    return [word for word in words if word not in overrides], overrides


def _asked(run: Again) -> Any:
    return run.member.values, run.member.queue, run.member.launcher


def _require_same_task(old: Plan, new: Plan) -> None:
    if new.argv is not None and new.run_id != old.run_id:
        raise UserError("task.argv: a program keeps its state to itself, so that no other run can begin from it")
    for name in ("target", "schema"):
        if (before := getattr(old, name)) != (after := getattr(new, name)):
            raise UserError(
                f"task.{name} {before} -> {after}: another task has no use for this state; train it from scratch with "
                "python -m launcher.run"
            )


def _go_on_as_child(run: Again, plan: Plan, folder: Path, env: MutableMapping[str, str]) -> int:
    """``plan`` is what ``run`` would be if it were no child of the run that it was recorded as."""
    old, config = run.old.plan, plan.config()
    parent_dir = run.old.sweep.run(old.run_id)
    child = RunDir(Path(plan.root) / plan.name / id_of(plan.identity(), old.run_id))
    sweep = SweepDir(child.path.parent)
    is_known = child.path.name in Target(sweep).run_ids
    if is_known and not again.over([Target(sweep, (child.path.name,))], env):
        return ExitCode.DONE
    parent = Plan.read(child).parent if child.newest_step() else None
    parent = parent or _newest_state(run.old.sweep, old.run_id, env)
    said = []
    if hasattr(type(config), "continued_from"):
        try:
            said = config.continued_from(old.config(), parent.step)
        except UserError as error:
            raise UserError(f"{error}; nothing was started") from None
    print(f"child of {parent_dir.path}, from its step {parent.step}: {child.path}", file=sys.stderr)
    for line in said:
        print(line, file=sys.stderr)
    return again.launch([as_child(replace(run, old=replace(run.old, sweep=sweep)), parent)], folder, env)


def _newest_state(sweep: SweepDir, run: str, env: MutableMapping[str, str]) -> Parent:
    """What a child of ``run`` begins from.

    Raises:
        UserError: there is none, none is whole, or a process may be about to save another one.
    """
    from launcher.runtime.resume import find_own  # imports torch
    from launcher.runtime.world import World

    seen = survey([Target(sweep, (run,))], env)
    if seen.problems:
        raise UserError(f"{seen.problems[0]}; nothing was started")
    (state,) = seen.states
    rundir = sweep.run(run)
    if again.is_active(state):
        raise UserError(
            f"run {rundir.path}: is {state.state}, its newest state will be another; wait until it is done, or stop it "
            "first (python -m launcher cancel)"
        )
    if state.state == "COMPLETED" and not rundir.list_checkpoints("step"):
        raise UserError(
            f"run {rundir.path}: is COMPLETED and kept no full state to begin from (checkpoint.at_end); train it with "
            "checkpoint.at_end=state, under another launch.name"
        )
    restored = find_own(rundir, run, World(), restart_if_damaged=False).restored
    if restored is None:
        raise UserError(
            f"run {rundir.path}: is {state.state} and has saved no state yet; go on with it without overrides"
        )
    step, checkpoint = restored.manifest.step, restored.path.name
    return Parent(run_id=run, path=str(rundir.path), step=step, checkpoint=checkpoint)
