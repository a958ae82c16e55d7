"""A job's door: ``python -uP -m launcher.runtime.worker PLANS`` runs one of the plans in the file PLANS.

PLANS holds a plan a line (JSON, ``Plan.to_json``), the line of an array's element 0 first. It knows neither Hydra nor
submitit: what was composed is frozen in the plan. Nothing is printed but errors; the run's own log says the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.runtime.errors import ExitCode, UserError, guarded, leave
from launcher.runtime.parent import end_with_parent
from launcher.runtime.place import in_slurm_step, job_id
from launcher.runtime.redaction import learn
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.world import array_element, set_defaults

if TYPE_CHECKING:
    from launcher.runtime.plan import Plan


def main() -> int:
    """The door; returns its exit code (``launcher.runtime.errors.ExitCode``)."""
    stop = StopFlag()
    stop.install()  # before the seconds that importing torch takes
    learn(os.environ)
    if "SUBMITIT_LOCAL_JOB_ID" in os.environ:
        end_with_parent()
    code = guarded(lambda: _work(_arguments(), stop))
    stop.ignore()
    if code not in (ExitCode.DONE, ExitCode.STOPPED_SAVED):
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # no goodbyes: closing a broken process group can wait for peers that are gone
    return code


def read_plan(path: Path, element: int) -> Plan:
    """The plan on line ``element`` (from 0) of the file ``path``.

    Raises:
        UserError: there is no such file or line, or it holds no plan.
    """
    try:
        with path.open("rb") as file:
            line = next(islice(file, element, None), None) if element >= 0 else None
    except OSError as error:
        raise UserError(f"plans {path}: {error.strerror or error}; submit the sweep again") from None
    if line is None:
        raise UserError(f"plans {path}: has no line for element {element} (counted from 0)")
    return parse_plan(line, path, element)


def parse_plan(line: bytes, path: Path, element: int) -> Plan:
    """The plan that ``line``, that of ``element`` in ``path``, holds.

    Raises:
        UserError: it holds none.
    """
    from launcher.runtime.plan import Plan

    try:
        return Plan.from_json(json.loads(line))
    except (ValueError, TypeError):
        what = f"plans {path}: line {element + 1} holds no plan: it is damaged, or another version's"
        raise UserError(f"{what}; submit the sweep again") from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.runtime.worker", description="Run one plan of a file.")
    parser.add_argument("plans", type=Path, metavar="PLANS", help="file of plans, one a line")
    parser.add_argument("--element", type=int, help="which line, from 0 (default: SLURM_ARRAY_TASK_ID, or 0)")
    parser.add_argument(
        "--submission", metavar="TOKEN", help="do nothing if a file TOKEN.withdrawn stands beside PLANS"
    )
    return parser.parse_args()


def _work(args: argparse.Namespace, stop: StopFlag) -> int:
    try:
        return _run(args, stop)
    except UserError as error:
        if in_slurm_step(os.environ) and error.code in (ExitCode.USER_ERROR, ExitCode.TRAINING_FAILED):
            _leave_word(args.plans, os.environ, error.code)
        raise


def _leave_word(plans: Path, env: Mapping[str, str], code: ExitCode) -> None:
    """For the batch shell: the job is not to be requeued, whatever code srun makes of the ranks that it ends now."""
    file = SweepDir(plans.parent.parent).refusal(plans.stem, str(job_id(env)), env.get("SLURM_RESTART_COUNT", "0"))
    with suppress(OSError):  # the error itself is what counts
        file.write_text(f"{int(code)}\n")


def _run(args: argparse.Namespace, stop: StopFlag) -> int:
    if args.submission is not None:
        require_not_withdrawn(args.plans.parent, args.submission)
    element = args.element if args.element is not None else array_element(os.environ)
    plan = read_plan(args.plans, element or 0)
    if args.submission is not None and "SUBMITIT_LOCAL_JOB_ID" not in os.environ:
        _see_not_cancelled(plan, args.submission, os.environ)
    set_defaults(os.environ, plan.hardware.get("cpus_per_task"))

    from launcher.runtime.job import run_job

    return run_job(plan, os.environ, stop, visible=False, preflight=True).code


def require_not_withdrawn(folder: Path, token: str) -> None:
    """See that the submission ``token``, whose files stand in ``folder``, was not given up.

    Raises:
        UserError: it was, or that cannot be told.
    """
    if not token or token.startswith(".") or "/" in token:
        raise UserError(f"--submission {token!r}: should be a plain name")
    try:
        with (folder / f"{token}.withdrawn").open("rb"):  # opened: NFS answers a mere question from its memory
            pass
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{folder / token}.withdrawn: {error.strerror or error}") from None
    raise UserError(f"submission {token} was withdrawn: this job does not run; submit the sweep again if you want it")


def _see_not_cancelled(plan: Plan, token: str, env: Mapping[str, str]) -> None:
    """A requeue that crosses a scancel brings the job back (slurmctld's job_mgr.c requeues what is ending, too)."""
    job, rundir = job_id(env), plan.rundir
    if job is None or job not in SweepDir(rundir.path.parent).read_cancelled(token):
        return
    if env.get("SLURM_PROCID", "0") == "0" and rundir.state() != "COMPLETED":
        rundir.say_state("CANCELLED", "cancelled; the same command goes on")
    raise UserError(f"job {job} was cancelled: it does not run again; the same command goes on")


if __name__ == "__main__":
    leave(main())
