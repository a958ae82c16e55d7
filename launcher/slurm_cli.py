"""Slurm's commands: the only place that calls sbatch, squeue, sacct, sacctmgr, scontrol, scancel.

Formats are fixed and parsed by position; never ``--json``, which differs from version to version. Manual pages:
sbatch(1), squeue(1), sacct(1), scontrol(1), scancel(1) of Slurm 22.05.
"""

from __future__ import annotations

import copy
import getpass
import logging
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from launcher.runtime.errors import UserError
from launcher.slurm_text import Forecast, QueuedJob, elements, forecast_in, settings

log = logging.getLogger(__name__)
T = TypeVar("T")

_AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Zero Bytes were transmitted|"
    r"slurm_load_\w+ error: Unable|Unable to establish controller|Transport endpoint|"
    r"Unexpected message received",  # scontrol requeue, where nobody answers (22.05)
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"job submit limit|MaxSubmitJob|Resource temporarily unavailable|temporarily unable to accept", re.IGNORECASE
)
_FULL = b"temporarily unable to accept"
"""What sbatch says before it sleeps and tries again: slurmctld holds as many jobs as it can (MaxJobCount)."""
_QUEUED_ALREADY = re.compile(r"Job is pending execution|already pending", re.IGNORECASE)
_FORBIDDEN = re.compile(r"operation is presently disabled|Access/permission denied", re.IGNORECASE)
"""What scontrol requeue says (slurm_errno.c): ESLURM_JOB_PENDING; ESLURM_DISABLED, ESLURM_ACCESS_DENIED."""
_NO_ACCOUNTING = re.compile(r"accounting storage is disabled|slurmdbd|accounting_storage", re.IGNORECASE)
_NO_OPTION = re.compile(r"unrecognized option|invalid option")
_NO_FIELD = re.compile(r"Invalid field requested")
"""What an older Slurm says to an option of squeue, or a field of sacct, that it has not."""
_CALL_S = 60.0  # longest time of one command
_PAUSES_S = (2.0, 5.0)
"""Waits between tries while slurmctld does not answer; each command waits for it by itself, 9 to 18 s."""


class SlurmError(UserError):
    """Slurm refused something; its own words are in the message."""


class SlurmAway(SlurmError):
    """slurmctld does not answer."""


class SubmitLimit(SlurmError):
    """Slurm takes no more jobs of this user for now (MaxSubmitJobs, MaxJobCount)."""


class RequeueForbidden(SlurmError):
    """This job may not be put back into the queue (``--no-requeue``, JobRequeue=0, not its owner)."""


def require_slurm(env: Mapping[str, str]) -> None:
    """See that Slurm's commands are here.

    Raises:
        UserError: they are not.
    """
    if shutil.which("sbatch", path=env.get("PATH")) is None:
        raise _no_slurm("sbatch")


def missing_commands(env: Mapping[str, str]) -> list[str]:
    """Those of Slurm's commands that are not on PATH and that we or our jobs cannot do without."""
    needed = ("sbatch", "squeue", "scontrol", "scancel", "srun")
    return [name for name in needed if shutil.which(name, path=env.get("PATH")) is None]


def _no_slurm(name: str) -> UserError:
    return UserError(f"{name}: there is no Slurm on PATH; log in to a cluster, or try one here: python -m slurm up")


def with_patience(call: Callable[[], T]) -> T:
    """``call()``, tried again with growing pauses while slurmctld does not answer.

    Raises:
        SlurmAway: it still does not.
    """
    for pause_s in _PAUSES_S:
        try:
            return call()
        except SlurmAway as error:
            log.warning("%s; trying again in %.0f s", error, pause_s)
            time.sleep(pause_s)
    return call()


class Slurm:
    """Slurm's commands with one environment, which says which cluster they reach."""

    def __init__(self, env: Mapping[str, str], slurm_conf: str | None = None, *, patient: bool = True) -> None:
        """``slurm_conf`` is used where ``env`` has no SLURM_CONF; who is not ``patient`` asks once only."""
        self._patient = patient
        self._known: dict[str, Any] = {}
        self._mine = "--me"
        """How squeue is asked for the jobs of this user; since Slurm 20.02."""
        self.slurm_conf = env.get("SLURM_CONF") or slurm_conf
        self._env = dict(env) | ({"SLURM_CONF": self.slurm_conf} if self.slurm_conf else {})
        # Inside a job these would stand for options that the new job was not given (sbatch(1), INPUT ENVIRONMENT).
        # And a user's own filters would hide jobs from us (squeue(1), sacct(1), ENVIRONMENT VARIABLES).
        ours = ["SLURM_", "SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_", *(["SBATCH_"] if "SLURM_JOB_ID" in env else [])]
        for name in [n for n in self._env if n.startswith(tuple(ours)) and n != "SLURM_CONF"]:
            del self._env[name]
        self._env["SLURM_BITSTR_LEN"] = "0"  # or the elements of an array are cut to 64 letters (sacct(1))

    def handing_on(self, variables: Mapping[str, str]) -> Slurm:
        """The same cluster with more in the environment of its commands: what sbatch hands on to jobs."""
        other = copy.copy(self)
        other._env = {**self._env, **variables}
        return other

    @property
    def export(self) -> str:
        """SBATCH_EXPORT, which says what of its environment sbatch hands on; empty: all."""
        return self._env.get("SBATCH_EXPORT", "")

    def once(self) -> Slurm:
        """The same cluster, asked once where it does not answer."""
        other = copy.copy(self)
        other._patient = False
        return other

    def sbatch(self, script: Path, options: Sequence[str] = (), keep_open: Iterable[int] = ()) -> str:
        """Submit ``script``, once; returns the job's id.

        Args:
            keep_open: file descriptors that live as long as sbatch does: a lock is then held even if we are killed.

        Raises:
            SlurmAway: no answer; whether Slurm has the job is not known, so this is not tried again here.
            SubmitLimit, SlurmError: Slurm does not take it.
        """
        answer = self._call_once(("sbatch", "--parsable", *options, str(script)), False, tuple(keep_open))
        job_id = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
        if not job_id.isdigit():
            raise SlurmError(f"sbatch {script}: answered {answer.strip()!r} instead of a job id")
        return job_id

    def test(self, script: Path, options: Sequence[str] = ()) -> str:
        """Whether Slurm would take ``script``, and when and where it would start, in its words; submits nothing.

        Raises:
            SlurmAway, SlurmError: it would not take it.
        """
        said = self._call("sbatch", "--test-only", *options, str(script), stderr=True)  # a site's own words come first
        return "; ".join(line.removeprefix("sbatch: ") for line in said.strip().splitlines())

    def forecast(self, script: Path, options: Sequence[str] = ()) -> Forecast | None:
        """When ``script`` would start if it were submitted now with ``options``; None: Slurm does not say.

        Raises:
            SlurmAway, SlurmError: as ``test``.
        """
        return forecast_in(self.test(script, options))

    def config(self) -> dict[str, str]:
        """``scontrol show config``: Slurm's settings by name; asked once."""
        if "config" not in self._known:
            lines = (line.partition("=") for line in self._call("scontrol", "show", "config").splitlines())
            self._known["config"] = {name.strip(): value.strip() for name, _, value in lines if value}
        return dict(self._known["config"])

    def version(self) -> str:
        """Of Slurm's commands, ``22.05.8``; slurmctld is not asked."""
        return self._call("sbatch", "--version").strip().rpartition(" ")[2]

    def partitions(self) -> dict[str, dict[str, str]]:
        """``scontrol show partition``: settings of each partition by its name; asked once."""
        if "partitions" not in self._known:
            found = (settings(line) for line in self._call("scontrol", "show", "partition", "--oneliner").splitlines())
            self._known["partitions"] = {s["PartitionName"]: s for s in found if "PartitionName" in s}
        return dict(self._known["partitions"])

    def show_job(self, job_id: str) -> dict[str, str]:
        """``scontrol show job``: what slurmctld knows of one job; values with blanks in them are cut.

        Raises:
            SlurmError: it has forgotten the job.
        """
        return settings(self._call("scontrol", "show", "job", "--oneliner", job_id).partition("\n")[0])

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue: Slurm ends it, and starts it again under the same number.

        Whoever was first does not matter. A job that is being cancelled would come back too: look at its state before.

        Raises:
            RequeueForbidden: Slurm may not requeue this job.
            SlurmAway: no answer.
        """
        try:
            self._call("scontrol", "requeue", job_id)
        except SlurmError as error:
            if _FORBIDDEN.search(str(error)):
                raise RequeueForbidden(str(error)) from None
            if not _QUEUED_ALREADY.search(str(error)):
                raise

    def wait_only_for(self, job_id: str, before: str) -> None:
        """Have ``job_id``, which waits, begin as soon as ``before`` has ended however that ends; it waits for no other.

        Of an array that waits for another one whole (``afterany``) each element may be given its own (scontrol(1)).
        """
        self._call("scontrol", "update", f"jobid={job_id}", f"dependency=afterany:{before}")

    def exclude(self, job_id: str, nodes: Sequence[str]) -> None:
        """Have a job that waits avoid ``nodes`` too, beside those that it avoids already.

        One that was requeued a moment ago takes it, also while its last processes end; one that runs does not.

        Raises:
            SlurmError: Slurm does not do that; or it does not know a node.
        """
        avoided = self.show_job(job_id).get("ExcNodeList", "").replace("(null)", "")
        new = [node for node in nodes if node not in avoided.split(",")]
        if new:  # what is said replaces what was
            said = ",".join(filter(None, (avoided, *new)))
            self._call("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={said}")

    def submit_limits(self) -> list[tuple[str, str, int]]:
        """Account, partition (empty: any) and MaxSubmitJobs of each association of this user that has such a limit.

        Raises:
            SlurmError: accounting is off, or slurmdbd does not answer.
        """
        words = ("sacctmgr", "--noheader", "--parsable2", "show", "association", f"user={getpass.getuser()}")
        lines = [line.split("|") for line in self._call(*words, "format=Account,Partition,MaxSubmitJobs").splitlines()]
        return [(line[0], line[1], int(line[2])) for line in lines if len(line) == 3 and line[2].isdigit()]

    def node_kinds(self) -> list[tuple[str, str, str]]:
        """Partition, generic resources (``gpu:a100:4(S:0-1)``) and features of each kind of node (sinfo(1))."""
        lines = (line.split("|") for line in self._call("sinfo", "--noheader", "--format=%R|%G|%f").splitlines())
        return [(line[0], line[1], line[2]) for line in lines if len(line) == 3]

    def associations(self) -> list[tuple[str, list[str], str]]:
        """Account, qualities of service and the default one of each association of this user.

        Raises:
            SlurmError: accounting is off, or slurmdbd does not answer.
        """
        words = ("sacctmgr", "--noheader", "--parsable2", "show", "association", f"user={getpass.getuser()}")
        lines = (line.split("|") for line in self._call(*words, "format=Account,QOS,DefaultQOS").splitlines())
        return [(line[0], [q for q in line[1].split(",") if q], line[2]) for line in lines if len(line) == 3]

    def queue(self) -> dict[str, QueuedJob]:
        """Every job of this user that Slurm remembers, finished ones for some minutes too; elements of arrays apart."""
        fields = "%i|%T|%r|%S|%M|%N|%o"
        words = ("--array", "--noheader", "--states=all", f"--format={fields}")
        try:
            answer = self._call("squeue", self._mine, *words)
        except SlurmError as error:
            if self._mine != "--me" or not _NO_OPTION.search(str(error)):
                raise
            self._mine = f"--user={getpass.getuser()}"
            answer = self._call("squeue", self._mine, *words)
        jobs = (QueuedJob(*line.split("|", 6)) for line in answer.splitlines() if line.count("|") >= 6)
        return {job.job_id: job for job in jobs}

    def history(self, job_ids: Iterable[str]) -> dict[str, str]:
        """State of jobs that squeue has forgotten, by their names; empty where accounting is off."""
        names = {job_id.partition("_")[0] for job_id in job_ids}
        wanted = sorted(name for name in names if name.isdecimal())  # a worker that was started by hand is no job
        if not wanted:
            return {}
        words = ("--allocations", "--noheader", "--parsable2", "--format=JobID,State")
        try:
            answer = self._call("sacct", *words, f"--jobs={','.join(wanted)}")
        except SlurmError as error:
            if _NO_ACCOUNTING.search(str(error)):
                return {}
            raise
        lines = (line.partition("|") for line in answer.splitlines())
        found = ((job_id, state.partition(" ")[0]) for job_id, _, state in lines if state)
        return {element: state for job_id, state in found for element in elements(job_id)}

    def submitted_as(self, script: Path) -> str | None:
        """Id of the job whose batch script is ``script``, from the queue or, with accounting, from the past.

        By the file's name, which is used once: folders on the way to it may be links, or quoted in a command line.
        """
        for job in self.queue().values():
            if script.name in job.command:
                return job.job_id.partition("_")[0]
        try:
            words = ("--allocations", "--noheader", "--parsable2", "--starttime=now-30days")
            past = self._call("sacct", *words, "--format=JobIDRaw,SubmitLine")
        except SlurmError as error:  # SubmitLine came with Slurm 21.08: before, a job that ran tells it by its mark
            if _NO_ACCOUNTING.search(str(error)) or _NO_FIELD.search(str(error)):
                return None
            raise
        lines = (line.partition("|") for line in past.splitlines())
        return next((job_id for job_id, _, line in lines if script.name in line and "--test-only" not in line), None)

    def warn(self, job_ids: Sequence[str]) -> None:
        """Send the steps of ``job_ids`` the signal that a preemption begins with; the jobs themselves go on."""
        if job_ids:
            self._call("scancel", "--quiet", "--signal=USR2", *job_ids)

    def kill_step(self, job_id: str, step: int) -> None:
        """SIGKILL to every task of a step; its job goes on. Named without a step, the job itself would be cancelled."""
        self._call("scancel", "--quiet", "--signal=KILL", f"{job_id}.{step}")

    def cancel(self, job_ids: Sequence[str]) -> None:
        """``scancel`` all of ``job_ids`` in one call; those that ended already do not matter."""
        if job_ids:
            self._call("scancel", "--quiet", *job_ids)

    def _call(self, *words: str, stderr: bool = False) -> str:
        """What a command prints."""
        return (
            with_patience(lambda: self._call_once(words, stderr)) if self._patient else self._call_once(words, stderr)
        )

    def _call_once(self, words: tuple[str, ...], stderr: bool, keep_open: tuple[int, ...] = ()) -> str:
        name = words[0]
        if self.slurm_conf and not Path(self.slurm_conf).exists():  # Slurm would look for it for a minute
            raise SlurmError(f"SLURM_CONF={self.slurm_conf}: there is no such file; is the cluster up?")
        try:
            done = subprocess.run(
                words, env=self._env, capture_output=True, text=True, timeout=_CALL_S, check=False, pass_fds=keep_open,
                stdin=subprocess.DEVNULL, errors="replace",
            )  # fmt: skip
        except FileNotFoundError:
            raise _no_slurm(name) from None
        except subprocess.TimeoutExpired as error:
            if _FULL in (error.stderr or b""):
                raise SubmitLimit(f"{name}: Slurm holds as many jobs as it can (MaxJobCount)") from None
            raise SlurmAway(f"{name}: no answer within {_CALL_S:.0f} s") from None
        if done.returncode == 0:
            return done.stdout + (done.stderr if stderr else "")
        said = "; ".join(line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip())
        if "configuration source" in said:
            raise UserError(
                f"{name}: Slurm is installed and knows no cluster; set SLURM_CONF, or start one: python -m slurm up"
            )
        said = said.replace(f"{name}: error: ", "").replace(f"{name}: ", "") or f"exit code {done.returncode}"
        kind = SubmitLimit if _LIMIT.search(said) else SlurmAway if _AWAY.search(said) else SlurmError
        raise kind(f"{name}: {said}")
