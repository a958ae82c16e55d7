"""The command: from a sweep's file to a folder, a frozen recipe and workers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.environment import uncommitted
from launcher.members import Member
from launcher.named_sweep import read_sweep
from launcher.plan import make_queued_plan, read_sections, recipe_of
from launcher.runtime.errors import ExitCode, RunsNotDone, UserError
from launcher.runtime.files import write_atomic, write_json
from launcher.runtime.pack.queue import Queue
from launcher.runtime.pack.worker import take_name
from launcher.runtime.signals import StopFlag
from launcher.runtime.sweepdir import SweepDir, write_plans
from launcher.schema import LaunchConfig
from launcher.submission.disk import show_disk
from launcher.submission.goal import Goal
from launcher.submission.jobs import Job
from launcher.submission.packing import without_extras
from launcher.submission.snapshot import Snapshot, take_snapshot, top_level
from launcher.sweep_files import find_sweep, sweep_folders
from sweeps.study.compose import compose_study, read_study, require_fitting
from sweeps.study.definition import Definition, Limits, StudySettings
from sweeps.study.folder import StudyDir
from sweeps.study.show import require_result, show
from sweeps.study.storage import require_optuna

_WORKERS = 4
_PACKAGES = ("launcher", "sweeps")


@dataclass(frozen=True)
class Asked:
    """What was typed."""

    name: str
    overrides: tuple[str, ...] = ()
    workers: int | None = None
    trials: int | None = None
    timeout: float | None = None
    storage: str | None = None
    show: bool = False

    @staticmethod
    def of(args: argparse.Namespace) -> Asked:
        """The same from argparse."""
        named = {name: getattr(args, name) for name in ("workers", "trials", "timeout", "storage", "show")}
        return Asked(args.name, tuple(args.overrides), **named)


@dataclass(frozen=True)
class Prepared:
    """A study whose folder is there, and what its workers need."""

    folder: StudyDir
    definition: Definition
    job: Job
    """What all workers have in common; its plan is none of a trial's."""
    snapshot: Snapshot | None
    """None: they run in this process, from the code as it stands."""
    launch: LaunchConfig
    workers: int
    logs: Path

    def freeze(self, token: str) -> None:
        """Write down what the workers of one command need; nothing later changes it."""
        self.folder.frozen(token).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.folder.frozen(token), self.definition.to_json())


def study(asked: Asked, env: MutableMapping[str, str], cwd: Path) -> int:
    """Begin a study, or go on with it; returns the exit code.

    Raises:
        UserError: something does not fit; nothing was started then.
    """
    require_optuna()
    _require_numbers(asked)
    sweep = read_sweep(find_sweep(asked.name, sweep_folders(cwd, env), cwd).absolute())
    space, settings = read_study(sweep)
    member = compose_study(sweep, space, asked.overrides)
    launch = read_sections(member.values).launch
    folder = StudyDir(SweepDir(cwd / Path(launch.root).expanduser() / str(launch.name)))
    if asked.show:
        show(folder)
        return ExitCode.DONE
    settings = _settled(settings, asked)
    goal = Goal(sweep.file.metric, sweep.file.direction, sweep.name)
    if doubt := goal.doubt():
        print(doubt, file=sys.stderr)
    _require_one_rank(member)
    job, snapshot = _job(member, folder, cwd)
    if member.launcher == "submitit_local":
        from launcher.submission.local_queue import require_room

        require_room(job, env)
    recipe = recipe_of(job.plan, member.values, here=member.launcher != "submitit_slurm")
    definition = Definition(goal, space, settings, recipe, member.overrides)
    require_fitting(definition, list(member.choices), sweep.path)
    if settings.pruner != "none" and definition.curve is None:
        raise UserError(
            f"{sweep.path}: study.pruner={settings.pruner}: metric={goal.metric} has no curve to be pruned by; use "
            "a curve such as val/loss, best_val_loss or train_loss, or pruner: none"
        )
    if launch.dry_run:
        print(f"would search {len(space)} keys in {settings.n_trials} trials: {folder.path}")
        workers = _workers(asked, member, launch, settings)
        show_disk(folder.sweep.path.parent, [job.plan] * settings.n_trials, snapshot, workers)
        return ExitCode.DONE
    workers = _workers(asked, member, launch, settings)
    logs = folder.sweep.job_logs
    return _start(Prepared(folder, definition, job, snapshot, launch, workers, logs), member, env, cwd)


def _start(study: Prepared, member: Member, env: MutableMapping[str, str], cwd: Path) -> int:
    if member.launcher == "submitit_slurm":
        from sweeps.study.on_slurm import on_slurm

        return on_slurm(study, env, cwd, lambda: _create(study, cwd))
    with study.folder.sweep.locked():
        _create(study, cwd)
    token = f"local-{uuid.uuid4().hex[:12]}"
    study.freeze(token)
    write_plans(study.folder.sweep.plans(token), [study.job.plan.to_json()])
    stop = StopFlag()
    stop.install(hang_up=True)
    if member.launcher == "basic":
        from sweeps.study.worker import run_trials

        cpus = study.job.resources.hardware.cpus_per_task
        name, beside = take_name(env, queued=False), study.launch.beside
        code = run_trials(study.folder, token, name, stop, beside=beside, cpus=cpus)
    else:
        from launcher.submission.local_workers import LocalWorkers, Shift

        assert study.snapshot is not None
        sweep, env = study.folder.sweep, study.snapshot.without_live_code(env)
        words = ["sweeps.study.worker", str(sweep.plans(token))]
        shift = Shift(words, study.job, study.launch.beside, study.snapshot, env, study.logs)
        starts = Queue(sweep.queue(token))
        starts.fill([])
        # A worker that finds nothing to do ends at once: whether a trial is left it finds out for itself.
        code = LocalWorkers(shift, starts, token, study.workers, is_work_left=lambda: True).run(stop)
    return say_result(study.folder, code)


def say_result(folder: StudyDir, code: int) -> int:
    """Print what was found; returns the exit code.

    Raises:
        UserError: a worker ended early, or no trial has a value.
    """
    show(folder)
    if code in (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_NOT_SAVED):
        raise RunsNotDone("stopped; the same command goes on", ExitCode(code))
    if code != ExitCode.DONE:
        raise RunsNotDone(f"a worker ended with exit code {code}; see {folder.sweep.job_logs}", ExitCode.BUG)
    require_result(folder)
    return code


def _create(study: Prepared, cwd: Path) -> None:
    folder, plan = study.folder, study.job.plan
    settings = study.definition.settings
    with folder.locked():
        folder.create(study.definition, Limits(settings.n_trials, settings.timeout_min))
    study.logs.mkdir(parents=True, exist_ok=True)
    if study.snapshot is not None:
        study.snapshot.write()
    if (diff_id := plan.environment["diff_id"]) and not folder.sweep.diff(diff_id).exists():
        folder.sweep.diff(diff_id).parent.mkdir(exist_ok=True)
        write_atomic(folder.sweep.diff(diff_id), uncommitted(cwd))
    folder.sweep.add_request(
        members=settings.n_trials, code=plan.code, command=shlex.join(["study", *sys.argv[2:]]), target=plan.target,
        **study.definition.goal.request(),
    )  # fmt: skip


def _require_numbers(asked: Asked) -> None:
    for name, least in (("workers", 1), ("trials", 1)):
        value = getattr(asked, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: should be at least {least}")
    if asked.timeout is not None and not 0 < asked.timeout < float("inf"):
        raise UserError(f"--timeout {asked.timeout:g}: should be above 0 minutes")


def _settled(settings: StudySettings, asked: Asked) -> StudySettings:
    typed = {"n_trials": asked.trials, "timeout_min": asked.timeout, "storage": asked.storage}
    return replace(settings, **{key: value for key, value in typed.items() if value is not None})  # type: ignore[arg-type]


def _require_one_rank(member: Member) -> None:
    hardware = read_sections(member.values).hardware
    for name in ("nodes", "tasks_per_node"):
        count = member.queue.get(name) or getattr(hardware, name)
        if count > 1:
            raise UserError(f"hardware.{name}={count}: a trial is one rank (allowed: 1)")


def _job(member: Member, folder: StudyDir, cwd: Path) -> tuple[Job, Snapshot | None]:
    here = member.launcher != "submitit_slurm"
    snapshot: Snapshot | None = None
    if member.launcher != "basic":
        targets = [member.values["task"][key] for key in ("target", "schema")]
        snapshot = take_snapshot(
            folder.sweep.code, cwd, [*_PACKAGES, *top_level(targets)], leave_out=folder.path.parent
        )
    queue = {} if member.launcher == "basic" else member.queue
    plan, resources = make_queued_plan(
        member.values, queue, default_name=folder.path.name, cwd=cwd, code=snapshot.id if snapshot else None, here=here,
        overrides=member.words,
    )  # fmt: skip
    return Job(without_extras(plan), resources, member.overrides), snapshot


def _workers(asked: Asked, member: Member, launch: LaunchConfig, settings: StudySettings) -> int:
    if member.launcher == "basic":
        if asked.workers not in (None, 1):
            raise UserError(
                f"--workers {asked.workers}: one worker runs in this process; add hydra/launcher=submitit_local or "
                "submitit_slurm"
            )
        return 1
    wanted = min(asked.workers or launch.parallel or _WORKERS, settings.n_trials)
    if member.launcher == "submitit_local":
        return min(wanted, launch.parallel or max(asked.workers or 1, len(os.sched_getaffinity(0))))
    return wanted
