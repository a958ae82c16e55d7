"""A packed worker's door: ``python -uP -m launcher.runtime.pack.worker PLANS`` runs members until none waits.

PLANS holds a plan a line, as for ``launcher.runtime.worker``; which of them wait is told by the queue beside it. The
worker imports torch once and forks a process for each member, so one that breaks down touches no other. Another worker
may be started by hand on the same file at any time, anywhere that sees the folder.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, MutableMapping
from itertools import accumulate
from pathlib import Path

from launcher.runtime.device import named_gpus
from launcher.runtime.errors import UserError, guarded
from launcher.runtime.pack.crew import Claim, Crew, Run, Source, Unreadable
from launcher.runtime.pack.queue import Queue
from launcher.runtime.parent import end_with_parent
from launcher.runtime.place import LOCAL_RESTARTS, job_id, number
from launcher.runtime.plan import Plan
from launcher.runtime.redaction import learn
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.worker import parse_plan, require_not_withdrawn
from launcher.runtime.world import set_defaults


class Members:
    """The members of one submission, as a worker sees them."""

    def __init__(self, queue: Queue, plans: Path, worker: str) -> None:
        self._queue, self._plans, self._worker = queue, plans, worker
        self._seen: list[str] = []
        self._offsets: list[int] = []

    def claim(self, leave: frozenset[str]) -> Claim | None:
        """The first entry that waits and can be had, none of ``leave``; those of dead workers where no other waits."""
        for look in (None, self._queue.list_waiting, self._of_dead):
            self._seen = look() if look else self._seen
            while self._seen:
                entry = self._seen.pop(0)
                if entry not in leave and self._queue.claim(entry, self._worker):
                    return Claim(entry, self._plan(entry))
        return None

    def give_back(self, claim: Claim) -> None:
        """Have it wait again."""
        self._queue.give_back(claim.entry, self._worker)

    def end(self, claim: Claim, code: int) -> None:
        """Nobody needs to run it any more."""
        self._queue.end(claim.entry, self._worker)

    def is_cancelled(self, claim: Claim) -> bool:
        """Whether ``launcher cancel`` was told to stop it."""
        return self._queue.cancellation(claim.entry).exists()

    def _of_dead(self) -> list[str]:
        return self._queue.list_waiting() if self._queue.give_back_of_dead() else []

    def _plan(self, entry: str) -> Plan:
        try:
            with self._plans.open("rb") as file:
                if not self._offsets:
                    self._offsets = [0, *accumulate(len(line) for line in file)]
                file.seek(self._offsets[int(entry)])
                line = file.readline()
        except OSError as error:  # of the file, not of this member
            self._queue.give_back(entry, self._worker)
            raise UserError(f"plans {self._plans}: {error.strerror or error}; submit the sweep again") from None
        except IndexError:
            line = b""
        try:
            return parse_plan(line, self._plans, int(entry))
        except UserError as error:
            self._queue.end(entry, self._worker)
            raise Unreadable(str(error)) from None


def main() -> int:
    """The door; returns its exit code."""
    return door("launcher.runtime.pack.worker", _work)


def door(module: str, work: Callable[[argparse.Namespace, StopFlag], int]) -> int:
    """The life of a worker's process that ``python -m MODULE`` has started; returns its exit code."""
    stop = StopFlag()
    stop.install()  # before the seconds that importing torch takes
    learn(os.environ)
    if "SUBMITIT_LOCAL_JOB_ID" in os.environ:
        end_with_parent()
    code = guarded(lambda: work(arguments(module), stop))
    stop.ignore()
    return code


def arguments(module: str) -> argparse.Namespace:
    """The command line of a worker that ``python -m MODULE`` starts.

    Raises:
        UserError: an option that cannot be.
    """
    parser = argparse.ArgumentParser(f"python -m {module}", description="Run what waits until nothing does.")
    parser.add_argument("plans", type=Path, metavar="PLANS", help="file of plans, one a line")
    parser.add_argument("--submission", metavar="TOKEN", help="do nothing if it was withdrawn, or this job cancelled")
    parser.add_argument("--beside", type=int, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument("--cpus", type=int, metavar="N", help="cores of this worker, shared by its runs")
    args = parser.parse_args()
    if args.beside < 1:
        raise UserError(f"--beside {args.beside}: should be at least 1")
    return args


def admitted(args: argparse.Namespace, sweep: SweepDir) -> str:
    """The name of the worker that this process is.

    Raises:
        UserError: its submission was withdrawn, or its job cancelled.
    """
    job = take_name(os.environ, queued=args.submission is not None)
    if args.submission is not None:
        require_not_withdrawn(args.plans.parent, args.submission)
        if job in sweep.read_cancelled(args.submission):
            raise UserError(f"job {job} was cancelled: it does not run again; the same command goes on")
    return job


def _work(args: argparse.Namespace, stop: StopFlag) -> int:
    sweep = SweepDir(args.plans.parent.parent)
    job, queue = admitted(args, sweep), Queue(sweep.queue(args.plans.stem))
    with queue.joined(job):
        return work(queue, Members(queue, args.plans, job), job, stop, beside=args.beside, cpus=args.cpus)


def work(
    queue: Queue,
    members: Source,
    job: str,
    stop: StopFlag,
    *,
    beside: int,
    cpus: int | None,
    run: Run | None = None,
) -> int:
    """Run ``members`` as the worker ``job``, which has joined ``queue``; returns the exit code.

    Args:
        beside: members at a time.
        cpus: cores of the worker; None: the libraries decide.
        run: runs one in its own process; None: trains it.
    """
    env = os.environ
    set_defaults(env, max(1, cpus // beside) if cpus else None)
    restarts = next((number(env, name) for name in ("SLURM_RESTART_COUNT", LOCAL_RESTARTS) if name in env), 0)
    led_on = sum(event["event"] == "began" for event in queue.events(job))
    queue.add_event(job, "start", restarts=restarts, step=led_on, host=socket.gethostname())
    gpus = named_gpus(env)
    crew = Crew(members, run or _train, stop, job=job, restarts=restarts, beside=beside, gpus=gpus)
    return crew.work(began=lambda: queue.add_event(job, "began"))


def _train(claim: Claim, stop: StopFlag, gpu: str | None) -> int:
    from launcher.runtime.job import run_job

    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    return run_job(claim.plan, os.environ, stop, visible=False).code


def take_name(env: MutableMapping[str, str], *, queued: bool) -> str:
    """What this worker's claims and attempts are known by; a name that is not its job's is written into ``env``.

    Args:
        queued: whether it was started by a batch script of ours: then by the job's name, the same after a requeue. Of
            those that are started by hand there may be many in one job (``srun -n 8``): each has a name of its own.
    """
    name = job_id(env) if queued else env.get("SUBMITIT_LOCAL_JOB_ID")
    name = name or f"{socket.gethostname()}.{os.getpid()}"
    if name != job_id(env):
        _stand_alone(env, name)
    return name


def _stand_alone(env: MutableMapping[str, str], job: str) -> None:
    """Have the members be of ``job`` and of one rank, wherever their worker was started."""
    env.pop("SLURM_STEP_ID", None)
    one_rank = {"GLOBALID": "0", "LOCALID": "0", "NTASKS": "1"}
    env.update({f"SUBMITIT_LOCAL_{name}": value for name, value in (one_rank | {"JOB_ID": job}).items()})


if __name__ == "__main__":
    sys.exit(main())
