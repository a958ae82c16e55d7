"""``python -m launcher.run [overrides]``: train here what the config says; with ``-m``, one run for each combination.

Hydra composes the config; what it composed is frozen into a plan; the plan is run in this process.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from launcher.runtime.errors import ExitCode, UserError, guarded, say_error
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import set_defaults

if TYPE_CHECKING:  # imported where they are used: --help and tab completion are as quick as Hydra
    from launcher.runtime.job import Outcome
    from launcher.runtime.plan import Plan


def main() -> int:
    """The command; returns its exit code (``launcher.runtime.errors.ExitCode``)."""
    return guarded(_main)


def _main() -> int:
    set_defaults(os.environ)
    stop = StopFlag()
    stop.install()
    composed: list[tuple[DictConfig, dict[str, str | None]]] = []
    codes: list[int] = []
    left_out: list[int] = []

    def on_config(config: DictConfig) -> float | None:
        chosen = HydraConfig.get()
        if chosen.mode != RunMode.MULTIRUN:  # trained after Hydra has returned: its wrapping shows in no traceback
            composed.append((config, chosen.runtime.choices))
            return None
        if stop:
            left_out.append(chosen.job.num)
            return float("nan")
        try:
            outcome = _train(_plan(config, chosen.runtime.choices), stop)
        except UserError as error:  # the others still run
            say_error(error)
            codes.append(error.code)
            return float("nan")
        codes.append(outcome.code)
        return _metric(outcome)

    _compose(on_config)
    codes += [_train(_plan(config, choices), stop).code for config, choices in composed]
    if left_out:
        print(f"stopped: {len(left_out)} members did not run; the same command goes on", file=sys.stderr)
        codes.append(ExitCode.STOPPED_SAVED)
    return max(codes, default=ExitCode.DONE)


def _compose(on_config: Any) -> None:
    """Let Hydra read the command line and call ``on_config`` with each config; its errors become one line."""
    with _hydra_raises():
        try:
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(on_config)()
        except Exception as error:
            from launcher.compose import is_hydras, told

            if not is_hydras(error):
                raise
            raise UserError(told(error)) from None


def _plan(config: DictConfig, choices: dict[str, str | None]) -> Plan:
    from launcher.compose import plain, require_basic_launcher
    from launcher.naming import default_name
    from launcher.plan import make_plan, require_one_process

    require_basic_launcher(choices)
    plan = make_plan(plain(config), default_name=default_name(choices), cwd=Path.cwd())
    require_one_process(plan)
    return plan


def _train(plan: Plan, stop: StopFlag) -> Outcome:
    from launcher.runtime.job import Outcome, run_job

    if plan.rundir.state() == "COMPLETED":
        print(f"COMPLETED already: {plan.rundir.path}")
        return Outcome("COMPLETED", ExitCode.DONE, plan.rundir.read(plan.rundir.summary) or {})
    outcome = run_job(plan, os.environ, stop)
    _say(plan, outcome)
    return outcome


def _metric(outcome: Outcome) -> float:
    """What a search minimises: the best validation loss, or the last training loss where nothing is validated."""
    values = (outcome.summary.get(name) for name in ("best_val_loss", "train_loss"))
    return next((float(v) for v in values if v is not None), float("nan"))


def _say(plan: Plan, outcome: Outcome) -> None:
    rundir = plan.rundir
    if outcome.state != "COMPLETED":
        print(f"{outcome.state}: {rundir.path}\ncontinue it with the same command")
        return
    print(f"COMPLETED: {rundir.path}")
    for name, value in outcome.summary.items():
        if value is not None and name != "status":
            print(f"  {name:<18} {_short(value)}")
    for file in (rundir.loss_curve, rundir.timing_curve, rundir.metrics):
        if file.exists():
            print(f"  {file.name}")
    if rundir.tensorboard.exists():
        print(f"look at it:  tensorboard --logdir {shlex.quote(str(rundir.path.parent))}")


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


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
    sys.exit(main())
