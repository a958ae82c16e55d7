"""``python -m launcher.run [overrides]``: train what the config says; with ``-m``, one run for each combination.

Hydra composes the config; what it composed is frozen into a plan; the plan is run in this process, or handed to the
queue that ``hydra/launcher`` names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from launcher.config_tree import CONFIG_FOLDER, CONFIG_NAME
from launcher.runtime.errors import ExitCode, UserError, guarded, leave, say_error
from launcher.runtime.redaction import learn
from launcher.runtime.rundir import metric_of
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.world import set_defaults
from launcher.sweep_files import named_sweeps, sweep_folders

if TYPE_CHECKING:  # imported where they are used: --help and tab completion are as quick as Hydra
    from launcher.members import Member
    from launcher.runtime.job import Outcome
    from launcher.runtime.plan import Plan
    from launcher.submission.reconcile import Decision, Rule


def main() -> int:
    """The command; returns its exit code (``launcher.runtime.errors.ExitCode``)."""
    return guarded(_main)


def _main() -> int:
    set_defaults(os.environ)
    stop = StopFlag()
    stop.install()
    stop.patient = False  # while nothing is there to be saved
    composed: list[DictConfig] = []
    codes: list[int] = []
    left_out: list[int] = []

    def on_config(config: DictConfig) -> float | None:
        chosen = HydraConfig.get()
        if chosen.mode != RunMode.MULTIRUN:  # launched after Hydra has returned: its wrapping shows in no traceback
            composed.append(_whole(config))
            return None
        if stop:
            left_out.append(chosen.job.num)
            return float("nan")
        try:
            from launcher.submission.in_process import rule_of

            member = _member(_whole(config))
            outcome = train(member, stop, rule_of(member))
        except UserError as error:  # the others still run
            say_error(error)
            codes.append(error.code)
            return float("nan")
        codes.append(outcome.code)
        return metric_of(outcome.summary)

    _compose(on_config)
    codes += [_launch(_member(config), stop) for config in composed]
    if left_out:
        print(f"stopped: {len(left_out)} members did not run; the same command goes on", file=sys.stderr)
        codes.append(ExitCode.STOPPED_SAVED)
    return max(codes, default=ExitCode.DONE)


def _compose(on_config: Any) -> None:
    """Let Hydra read the command line and call ``on_config`` with each config; its errors become one line."""
    from hydra_plugins.seemore._queues import register

    if any("site.secrets" in word for word in sys.argv):  # Hydra's words would show it
        from launcher.compose import require_no_typed_secret

        require_no_typed_secret(sys.argv[1:])
    register()
    with _hydra_raises(), _sweep_named():
        try:
            hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=CONFIG_NAME)(on_config)()
        except Exception as error:
            from launcher.compose import is_hydras, told

            if not is_hydras(error):
                raise
            raise UserError(told(error)) from None


def _whole(config: DictConfig) -> DictConfig:
    """What Hydra composed, its own section put back: values of ``hydra.launcher`` may refer to others."""
    with open_dict(config):
        config.hydra = HydraConfig.get()
    return config


def _member(config: DictConfig) -> Member:
    from launcher.compose import COMPOSITION_ERRORS, told
    from launcher.members import member_of

    try:
        return member_of(config, list(config.hydra.overrides.task))
    except COMPOSITION_ERRORS as error:
        raise UserError(told(error)) from None


def _launch(member: Member, stop: StopFlag) -> int:
    """Train here, or hand the one run to its queue: nobody trains on a login node by mistake."""
    from launcher.submission.in_process import rule_of

    rule = rule_of(member).by_name()
    if member.launcher == "basic":
        return train(member, stop, rule).code
    from launcher.submission.dispatch import dispatch

    dispatch([member], os.environ, Path.cwd(), rule=rule)
    return ExitCode.DONE


def train(member: Member, stop: StopFlag, rule: Rule) -> Outcome:
    """Train ``member`` in this process, from its last checkpoint where it has one; says what became of it.

    Args:
        rule: what becomes of a run that has ended; one that FAILED and is left so counts as one that fails.

    Raises:
        UserError: as ``make_plan`` and ``run_job``.
    """
    from launcher.final_numbers import say_outcome
    from launcher.naming import default_name
    from launcher.plan import make_plan, read_sections
    from launcher.runtime.job import run_job
    from launcher.submission.in_process import decide_here, require_no_jobs
    from launcher.submission.runnable import require_here
    from launcher.submission.variables import given, say_hints, variables_here

    require_no_jobs(member)
    stop.patient = True
    site = read_sections(member.values).site
    name = default_name(member.choices)
    plan = make_plan(member.values, default_name=name, cwd=Path.cwd(), overrides=member.words, parent=member.parent)
    decision = decide_here(plan, rule)
    if (outcome := _left_alone(member, plan, decision)) is not None:
        return outcome
    if decision.action == "anew":
        sweep = SweepDir(plan.rundir.path.parent)
        with sweep.locked():
            sweep.move_aside([plan.run_id])
        print(f"made by other code: moved to {sweep.replaced}, made anew from the start", file=sys.stderr)
    say_hints(site, here=True)
    with given(os.environ, variables_here(site, os.environ)):
        learn(os.environ)
        require_here(plan, os.environ)
        outcome = run_job(plan, os.environ, stop)
    say_outcome(plan.rundir, outcome)
    return outcome


def _left_alone(member: Member, plan: Plan, decision: Decision) -> Outcome | None:
    """Say what is not run, and why; None: it is run."""
    from launcher.runtime.job import Outcome
    from launcher.submission.disk import show_disk

    if member.values["launch"]["dry_run"]:
        would = "train" if decision.action == "start" else decision.action
        print(f"would {would} here: {plan.rundir.path}  {' '.join(member.overrides)}".rstrip())
        if decision.begins:
            show_disk(plan.rundir.path.parent.parent, [plan])
        return Outcome(decision.state, ExitCode.DONE, {})
    if decision.action == "skip":
        print(f"COMPLETED already: {plan.rundir.path}")
        return Outcome("COMPLETED", ExitCode.DONE, plan.rundir.read(plan.rundir.summary) or {})
    if decision.action == "keep":
        words = (
            f"FAILED before: {plan.rundir.path}: {decision.reason}; left as it is, launch.retry=failed runs it again"
        )
        print(words, file=sys.stderr)
        return Outcome("FAILED", ExitCode.USER_ERROR, plan.rundir.read(plan.rundir.summary) or {})
    return None


@contextmanager
def _sweep_named() -> Iterator[None]:
    """Have Hydra read ``sweep=NAME`` as what our sweeper is told, and its help list the names that there are."""
    typed, folders = sys.argv, sweep_folders(Path.cwd(), os.environ)
    OmegaConf.register_new_resolver("named_sweeps", lambda: ", ".join(named_sweeps(folders)) or "none", replace=True)
    if any(word.startswith("sweep=") for word in typed[1:]):
        from launcher.named_sweep import words_for_hydra

        sys.argv = [typed[0], *words_for_hydra(typed[1:], folders, Path.cwd())]
    try:
        yield
    finally:
        sys.argv = typed


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them and exiting: the wording is ours."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


if __name__ == "__main__":
    leave(main())
