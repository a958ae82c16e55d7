"""Committing to what was decided: it is said, then written down, then started: as Slurm's jobs, or as processes here.

A command that is killed between any two steps is cleared up by the next one (``launcher.submission.submit``).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.environment import uncommitted
from launcher.named_sweep import as_typed
from launcher.runtime.errors import UserError
from launcher.runtime.files import write_atomic
from launcher.runtime.plan import Plan
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm, SlurmAway
from launcher.submission.goal import Goal, only
from launcher.submission.jobs import Job, Receipt, told_apart
from launcher.submission.keep_off import keep_off
from launcher.submission.packing import Packing
from launcher.submission.reconcile import Decision, Rule, decisions, nothing_to_do, require_none_failed, tell
from launcher.submission.snapshot import Snapshot
from launcher.submission.submit import claim_folders, require_accepted, settle, submit
from launcher.submission.successors import REQUEUE, Continuation

_SHOWN = 20
"""Most runs that are listed one by one."""


@dataclass(frozen=True)
class Wanted:
    """The runs that a command asks for, and what they would be launched with."""

    sweep: SweepDir
    jobs: Sequence[Job]
    snapshot: Snapshot
    logs: Path
    cwd: Path
    rule: Rule
    packing: Packing | None = None
    """Have runs of one rank share jobs."""
    goal: Goal | None = None
    """Of a named sweep."""
    continuation: Continuation = REQUEUE
    """How its runs go on on Slurm."""

    @property
    def plans(self) -> list[Plan]:
        """Of each run."""
        return [job.plan for job in self.jobs]

    def done_already(self) -> list[Decision] | None:
        """Decisions where nothing is to be done: that needs neither Slurm nor the lock, and writes nothing."""
        return nothing_to_do(self.sweep, self.plans, self.rule, self.snapshot.id)

    def decide(self, slurm: Slurm | None = None) -> list[Decision]:
        """What is to be done about each run; nothing is changed."""
        return decisions(self.sweep, self.plans, self.rule, self.snapshot.id, slurm)

    def chosen(self, found: Sequence[Decision]) -> list[Job]:
        """Jobs that begin."""
        return [job for job, decision in zip(self.jobs, found, strict=True) if decision.begins]

    def prepare(self, found: Sequence[Decision]) -> list[Job]:
        """Move aside what is made anew, and write down all that the jobs that begin will need; returns those."""
        if anew := [decision.run_id for decision in found if decision.action == "anew"]:
            self.sweep.move_aside(anew)
        begin = self.chosen(found)
        if begin:
            self.record(begin)
        self.sweep.add_members((job.plan.run_id, job.overrides) for job in self.jobs)
        return begin

    def record(self, jobs: Sequence[Job]) -> None:
        """Write down everything that ``jobs`` will need, and what was asked for."""
        sweep, logs = self.sweep, self.logs
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{logs}: {error.strerror}; jobs print there (hydra.launcher.submitit_folder)") from error
        claim_folders(jobs)
        self.snapshot.write()
        if (diff_id := jobs[0].plan.environment.get("diff_id")) and not sweep.diff(diff_id).exists():
            sweep.diff(diff_id).parent.mkdir(exist_ok=True)
            write_atomic(sweep.diff(diff_id), uncommitted(self.cwd))
        said = {"command": shlex.join(as_typed(sys.argv[1:])), "target": only(plan.target for plan in self.plans)}
        goal = self.goal.request() if self.goal else {}
        sweep.add_request(members=len(self.jobs), code=self.snapshot.id, **said, **goal)
        sweep.add_members((job.plan.run_id, job.overrides) for job in jobs)


def run_here(wanted: Wanted, parallel: int | None, env: Mapping[str, str]) -> dict[str, float]:
    """Run what is left on this machine, and wait for it; the metric of each run by run_id.

    Raises:
        RunsNotDone: some failed or were stopped, or FAILED before and were left as they are.
    """
    from launcher.submission.local_queue import require_room, run_all

    found = wanted.done_already()
    if found is not None:
        tell(wanted.sweep, found)
        _say_done(wanted.sweep, found)
    else:
        with wanted.sweep.locked():  # to the end: another queue would take the same runs
            found = wanted.decide()
            for job in wanted.chosen(found):
                require_room(job, env)
            tell(wanted.sweep, found)
            _say_done(wanted.sweep, found)
            begin = wanted.prepare(found)
            run_all(wanted.sweep, begin, wanted.snapshot, parallel, env, wanted.logs, wanted.packing)
    require_none_failed(wanted.sweep, found)
    return {plan.run_id: plan.rundir.metric() for plan in wanted.plans}


def to_slurm(wanted: Wanted, slurm: Slurm) -> dict[str, Receipt]:
    """Decide, say so, submit what begins, and say what became of it; the receipts by run_id.

    Raises:
        SlurmAway: slurmctld does not answer; what was asked for is planned.
        SlurmError: Slurm would not take a job of some kind; of such a sweep none is submitted.
    """
    sweep, new = wanted.sweep, []
    found = wanted.done_already()
    if found is not None:
        tell(sweep, found)
    else:
        away = _refusal(wanted, slurm) if not sweep.submissions.exists() else None
        with sweep.locked() as lock:
            found = _decide_with(wanted, slurm, away)
            begin = wanted.prepare(found)
            begin = keep_off(sweep, begin, found, slurm, wanted.snapshot, wanted.logs, wanted.packing)
            new = submit(sweep, begin, slurm, wanted.snapshot, lock, wanted.logs, wanted.packing, wanted.continuation)
    last = {run: job for s in sweep.read_submissions() if s.job_id and not s.withdrawn for run, job in s.jobs()}
    receipts = {d.run_id: Receipt(d.run_id, d.state, d.job_id or last.get(d.run_id), new=False) for d in found}
    receipts |= {receipt.run_id: receipt for receipt in new}
    _say(sweep, wanted.jobs, receipts)
    return receipts


def _refusal(wanted: Wanted, slurm: Slurm) -> SlurmAway | None:
    """Before a new sweep's folder is made, see that Slurm takes it; returns why Slurm could not be asked, if so."""
    try:
        require_accepted(wanted.sweep, wanted.chosen(wanted.decide()), slurm, wanted.snapshot, wanted.logs)
    except SlurmAway as error:
        return error
    return None


def _decide_with(wanted: Wanted, slurm: Slurm, away: SlurmAway | None) -> list[Decision]:
    """Clear up what was cut off, decide, say so, and see that Slurm takes what begins; the caller holds the lock.

    Raises:
        SlurmAway: Slurm does not answer; all is written down, so that the same command can submit it.
    """
    known = wanted.sweep.submissions.exists()
    try:
        if away is not None:
            raise away
        settle(wanted.sweep, slurm)
        found = wanted.decide(slurm)
        tell(wanted.sweep, found)
        if known:
            require_accepted(wanted.sweep, wanted.chosen(found), slurm, wanted.snapshot, wanted.logs)
        return found
    except SlurmAway as error:
        wanted.record(wanted.jobs)
        raise SlurmAway(f"{error}; the runs stay planned, the same command submits them") from None


def _say_done(sweep: SweepDir, found: Sequence[Decision]) -> None:
    done = [decision for decision in found if decision.action == "skip"]
    if len(done) > _SHOWN:
        print(f"COMPLETED already: {len(done)} runs of {sweep.path}")
        return
    for decision in done:
        print(f"COMPLETED already: {sweep.run(decision.run_id).path}")


def _say(sweep: SweepDir, jobs: Sequence[Job], receipts: Mapping[str, Receipt]) -> None:
    """Receipts on stdout, what to do next on stderr."""
    new = [receipt for receipt in receipts.values() if receipt.new]
    if len(jobs) <= _SHOWN:
        for run_id, differs in told_apart(jobs).items():
            receipt = receipts[run_id]
            print(f"{receipt.state:<10} {receipt.job_id or '-':<12} {run_id}  {differs}".rstrip())
    else:
        for state in sorted({receipt.state for receipt in receipts.values()}):
            of_state = [r for r in receipts.values() if r.state == state]
            arrays = sorted({(r.job_id or "-").partition("_")[0] for r in of_state})
            print(f"{state:<10} {len(of_state)} runs: {', '.join(arrays[:_SHOWN])}")
    planned = [r for r in receipts.values() if r.state == "PLANNED"]
    failed = sum(r.state == "FAILED" for r in receipts.values())
    kept = len(receipts) - len(new) - len(planned) - failed
    left = f", {failed} FAILED left as they are" if failed else ""
    print(f"{len(new)} submitted, {kept} done or queued already{left}: {sweep.path}", file=sys.stderr)
    if planned:
        print(
            f"Slurm takes no more for now, {len(planned)} stay PLANNED; the same command submits them "
            f"({planned[0].reason})",
            file=sys.stderr,
        )
    print(f"follow them:  python -m launcher status {shlex.quote(str(sweep.path))}", file=sys.stderr)
