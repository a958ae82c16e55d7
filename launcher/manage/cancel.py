"""``launcher cancel``: end the jobs of runs, and remember that it was asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from launcher.manage.cancel_packed import PackedRuns, part
from launcher.manage.states import RunState
from launcher.manage.survey import cluster_of, open_workers, survey
from launcher.manage.targets import merged, named
from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import Submission, SweepDir
from launcher.slurm_cli import Slurm
from launcher.submission.submit import settle

Found = tuple[SweepDir, Submission, list[str]]
"""Jobs of a submission."""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "PLANNED")


def cancel(words: Sequence[str], cwd: Path, env: Mapping[str, str], *, grace_s: float, dry_run: bool = False) -> int:
    """Cancel every queued or running job of the runs that ``words`` stand for, one scancel for each cluster.

    What was asked for is written down first: the runs are CANCELLED, also where Slurm forgets why they ended. Running
    ones are asked to save before: scancel itself leaves them KillWait, often less than a save takes (slurm.conf(5)).

    Args:
        grace_s: longest wait for running ones to save, in seconds; 0: none.

    Returns:
        The exit code: DONE, or USER_ERROR where a run is trained by a process that only its owner can stop.

    Raises:
        UserError: a word stands for no run, or Slurm does not answer.
    """
    asked = [target for word in words for target in named(word, cwd)]
    whole = {target.sweep.path.resolve(): target.sweep for target in asked if target.runs is None}
    targets = merged(asked)
    if not dry_run:
        for target in targets:
            _clear_up(target.sweep, env)
    seen = survey(targets, env)
    if seen.problems:
        raise UserError(f"{seen.problems[0]}; nothing was cancelled")
    going = [(sweep, state) for sweep, state in seen.rows if state.state not in _ENDED]
    jobs = [(sweep, state) for sweep, state in going if state.job_id is not None]
    own, packed = part(jobs)
    found = [*_by_submission(own), *_open_submissions(whole.values(), env)]
    found += [(s.sweep, link, link.job_names()) for s in packed if s.are_all for link in s.submission.links]
    training = {s.job_id: RunDir(Path(s.path)) for _, s in jobs if RunDir(Path(s.path)).state() == "RUNNING"}
    if not dry_run:
        _write_down(found, packed)
        _end_jobs(found, training, env, grace_s)
        taken = {run for runs in packed if not runs.are_all for run in runs.runs}
        _let_save([RunDir(Path(s.path)) for _, s in jobs if s.run_id in taken and s.state == "RUNNING"], grace_s)
    for runs in packed:
        print(f"{'would cancel' if dry_run else 'cancelled'} {len(runs.runs)} packed runs of {runs.sweep.path}")
    for sweep, _, names in found:
        print(f"{'would cancel' if dry_run else 'cancelled'} {len(names)} of {sweep.path}: {' '.join(compact(names))}")
    local = [state for _, state in going if state.job_id is None and RunDir(Path(state.path)).is_locked()]
    if own and not found and not whole:
        raise UserError(f"{own[0][1].path}: its worker runs others after it; name the folder of all: {own[0][0].path}")
    if not jobs and not local and not found:
        print("no job of theirs is queued or runs", file=sys.stderr)
    for state in local:
        print(_how_to_stop(state), file=sys.stderr)
    return ExitCode.USER_ERROR if local else ExitCode.DONE


def _write_down(found: Sequence[Found], packed: Sequence[PackedRuns]) -> None:
    for sweep, submission, names in found:
        sweep.add_event("cancelled", submission.token, jobs=names)
    for runs in packed:
        runs.leave_queue()


def _end_jobs(
    found: Sequence[Found], training: Mapping[str | None, RunDir], env: Mapping[str, str], grace_s: float
) -> None:
    """One scancel for each cluster, once what trains has saved."""
    for cluster in dict.fromkeys(cluster_of(submission.slurm_conf, env) for _, submission, _ in found):
        names = [n for _, s, names in found if cluster_of(s.slurm_conf, env) == cluster for n in names]
        slurm = Slurm(env, cluster)
        if grace_s and (saving := [name for name in names if name in training]):
            slurm.warn(compact(saving))
            _let_save([training[name] for name in saving], grace_s)
        slurm.cancel(compact(names))


def _clear_up(sweep: SweepDir, env: Mapping[str, str]) -> None:
    """Find out what Slurm has of submissions that were cut off: their jobs are to be cancelled too."""
    if cut_off := sweep.cut_off():
        with sweep.locked():
            settle(sweep, Slurm(env, cluster_of(cut_off[0].slurm_conf, env)))


def _open_submissions(sweeps: Iterable[SweepDir], env: Mapping[str, str]) -> Iterator[Found]:
    """Workers that find out for themselves what to run, of sweeps that are to be cancelled as a whole."""
    for sweep in sweeps:
        yield from ((sweep, submission, names) for submission, names in open_workers(sweep, env))


def _let_save(runs: Sequence[RunDir], grace_s: float) -> None:
    """Wait until none of ``runs`` trains any more; Ctrl-C ends the wait."""
    if not runs or not grace_s:
        return
    print(f"{len(runs)} running: asked to save, at most {grace_s:g} s (Ctrl-C: not waited for)", file=sys.stderr)
    deadline = time.monotonic() + grace_s
    try:
        while (left := [run for run in runs if run.state() == "RUNNING"]) and time.monotonic() < deadline:
            time.sleep(0.1)  # files that other machines write
    except KeyboardInterrupt:
        left = list(runs)
    for run in left:
        print(f"{run.path}: did not say that it has saved; it goes back to its last checkpoint", file=sys.stderr)


def _by_submission(
    jobs: Sequence[tuple[SweepDir, RunState]],
) -> Iterator[Found]:
    """Each submission that ``jobs`` belong to, with its sweep and those jobs; of a chain all that are left of it."""
    for sweep in dict.fromkeys(sweep for sweep, _ in jobs):
        wanted = {state.job_id for one, state in jobs if one == sweep}
        for submission in sweep.read_submissions():
            if submission.job_id is not None and not submission.withdrawn:
                runs = {run for link in submission.links for run, job in link.jobs() if job in wanted}
                for link in submission.links if runs else ():
                    yield sweep, link, [job for run, job in link.jobs() if run in runs]


def compact(job_ids: Iterable[str]) -> list[str]:
    """``12_0 12_1 12_2 7`` as ``12_[0-2] 7``, which scancel takes as one request for each array (scancel(1))."""
    arrays: dict[str, list[int]] = {}
    for job_id in job_ids:
        array, _, index = job_id.partition("_")
        arrays.setdefault(array, []).extend([int(index)] if index else [])
    names = {array: _ranges(indexes) for array, indexes in arrays.items()}
    return [
        array if not ranges else f"{array}_{ranges}" if ranges.isdigit() else f"{array}_[{ranges}]"
        for array, ranges in names.items()
    ]


def _ranges(indexes: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(set(indexes)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _queue_of(worker: int | None) -> int | None:
    """The local queue that started ``worker``, which would only go on with its next run; itself where there is none."""
    try:
        words = Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")
        parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return worker
    return parent if b"launcher.runtime.worker" in words else worker


def _how_to_stop(state: RunState) -> str:
    pid = _queue_of(RunDir(Path(state.path)).lock_holder())
    how = f"kill -INT {pid}" if pid else "press Ctrl-C there, or send it SIGINT"
    return f"{state.path}: trained by a process of this machine, not by a job; stop it where it was started: {how}"
