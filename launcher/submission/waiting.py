"""Waiting for submitted runs, for those who need their values now."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launcher.manage.states import RunState, run_states
from launcher.runtime.errors import ExitCode, RunsNotDone
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway

_POLL_S = (1.0, 2.0, 3.0, 5.0, 10.0)
"""Pauses between looks: short at first, then as seldom as an administrator likes it."""


def wait_for(sweep: SweepDir, runs: Sequence[str], slurm: Slurm) -> dict[str, float]:
    """Wait until no job is there for any of ``runs``; returns the metric of each.

    Raises:
        RunsNotDone: some failed, were cancelled or are still planned; or Ctrl-C, which stops the waiting alone.
    """
    stop = StopFlag()
    stop.install()
    looks, before = 0, ""
    while True:
        try:
            states = run_states(sweep, slurm, only=set(runs))
            now = count(states)
        except SlurmAway as error:  # a restart of slurmctld ends no job
            states, now = [], f"{error}; still waiting"
        if now != before:
            print(now, file=sys.stderr, flush=True)
            before = now
        if states and not any(state.is_active for state in states):
            return _metrics(sweep, states)
        pause = _POLL_S[min(looks, len(_POLL_S) - 1)]
        looks += 1
        if stop.wait(pause):
            raise RunsNotDone("no longer waiting; the jobs go on", ExitCode.STOPPED_SAVED)


def count(states: Sequence[RunState]) -> str:
    """``12 COMPLETED, 3 RUNNING``."""
    found: dict[str, int] = {}
    for state in states:
        found[state.state] = found.get(state.state, 0) + 1
    return ", ".join(f"{number} {name}" for name, number in sorted(found.items()))


def _metrics(sweep: SweepDir, states: Sequence[RunState]) -> dict[str, float]:
    not_done = [state for state in states if state.state != "COMPLETED"]
    if not_done:
        first = not_done[0]
        failed = any(state.state == "FAILED" for state in not_done)
        reason = f": {first.reason}" if first.reason else ""
        raise RunsNotDone(
            f"{len(not_done)} of {len(states)} runs are not done; {first.path} is {first.state}{reason}",
            ExitCode.USER_ERROR if failed else ExitCode.STOPPED_SAVED,
        )
    return {state.run_id: sweep.run(state.run_id).metric() for state in states}
