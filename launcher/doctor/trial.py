"""A small real job: does what runs stand on work on the nodes of this cluster?"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import launcher
from launcher.doctor.findings import Finding, fail, ok, warn
from launcher.runtime.checkup import answer, ask, result
from launcher.runtime.files import write_json
from launcher.slurm_cli import Slurm, SlurmError

PROGRAM = "launcher.runtime.checkup"
NOT_VISIBLE = 41
"""Exit code of a task that does not see the folder."""
_LIMIT_MIN = 5
_SECONDS = 100
_LOOK_EVERY_S, _ASK_EVERY_S = 0.03, 1.0
_END_S = 60.0
"""Longest wait for a cancelled job's processes to be gone."""
_BEFORE = ("PENDING", "CONFIGURING")
_DURING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")
_FAR_S, _SLOW_S = 2.0, 5.0


@dataclass(frozen=True)
class Wish:
    """What the test job is to be."""

    root: Path
    """Folder of runs."""
    nodes: int = 2
    gpus: int = 0
    """GPUs on each node; 0: gloo on the CPUs."""
    python: str = sys.executable
    patience_s: int = 120
    """Longest wait for its start."""
    interface: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    """Of sbatch: partition, account, qos, constraint."""
    gpu_type: str | None = None
    setup: Sequence[str] = ()
    """Lines of shell that come first."""

    @property
    def tasks(self) -> int:
        """Ranks: one on each node, or on each GPU."""
        return self.nodes * max(1, self.gpus)


def script_text(wish: Wish, folder: Path) -> str:
    """The batch script; its jobs write into ``folder`` only, and end by themselves."""
    options = {
        "job-name": "seemore-doctor", "nodes": wish.nodes, "ntasks-per-node": max(1, wish.gpus), "time": _LIMIT_MIN,
        "output": _log(folder), "error": _log(folder), "open-mode": "append", **wish.options,
    }  # fmt: skip
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items())]
    kind = f"{wish.gpu_type}:" if wish.gpu_type else ""
    lines += ["#SBATCH --no-requeue", *([f"#SBATCH --gpus-per-node={kind}{wish.gpus}"] if wish.gpus else [])]
    lines += wish.setup
    here = Path(launcher.__file__).resolve().parent.parent
    lines.append(f'export PYTHONPATH={shlex.quote(str(here))}"${{PYTHONPATH:+:$PYTHONPATH}}" OMP_NUM_THREADS=1')
    if wish.interface:
        name = shlex.quote(wish.interface)
        lines.append(f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}")
    program = [*shlex.split(wish.python), "-uP", "-m", PROGRAM, str(folder), "--seconds", str(_SECONDS)]
    program += ["--gpu"] if wish.gpus else []
    look = ["bash", "-c", f'test -w "$0" || exit {NOT_VISIBLE}; exec "$@"', str(folder)]
    lines.append(shlex.join(["srun", "--kill-on-bad-exit=0", *look, *program]))
    return "\n".join(lines) + "\n"


def _log(folder: Path) -> Path:
    return folder / "log"


def try_job(slurm: Slurm, wish: Wish, folder: Path, results: list[dict[str, Any]]) -> Iterator[Finding]:
    """Submit the job, answer it, and tell what its ranks found; whatever happens, it is over at the end.

    Args:
        results: is given what each rank left.
    """
    script = folder / "job.sh"
    script.write_text(script_text(wish, folder))
    try:
        job_id = slurm.sbatch(script)
    except SlurmError as error:
        yield fail("test job", str(error), "see the options of this command: --partition, --account, --nodes")
        return
    trial = _Trial(slurm, wish, folder, job_id)
    try:
        trial.wait()
    finally:
        trial.end()
    results += trial.results()
    yield from trial.findings()


class _Trial:
    def __init__(self, slurm: Slurm, wish: Wish, folder: Path, job_id: str) -> None:
        self._slurm, self._wish, self._folder, self._job_id = slurm, wish, folder, job_id
        self._submitted = time.monotonic()
        self._waited_s: float | None = None
        """From submission to start."""
        self._job: dict[str, str] = {}
        self._answered: set[int] = set()
        self._results: dict[int, dict[str, Any]] = {}

    def wait(self) -> None:
        """Until every rank has left its result, the job has ended, or the patience has."""
        asked = float("-inf")
        while len(self._results) < self._wish.tasks:
            self._answer()
            now = time.monotonic()
            if now - asked >= _ASK_EVERY_S:
                asked = now
                self._job = self._slurm.show_job(self._job_id)
                state = self._job.get("JobState", "")
                if state not in _BEFORE and self._waited_s is None:
                    self._waited_s = now - self._submitted
                if state not in (*_BEFORE, *_DURING):
                    self._answer()
                    return
                if state in _BEFORE and now - self._submitted > self._wish.patience_s:
                    return
            time.sleep(_LOOK_EVERY_S)

    def _answer(self) -> None:
        """Tell each rank that asks what time it is here, and take in results."""
        present = set(os.listdir(self._folder))  # noqa: PTH208
        for rank in range(self._wish.tasks):
            if ask(rank) in present and rank not in self._answered:
                write_json(self._folder / answer(rank), {"time": time.time()})
                self._answered.add(rank)
            if result(rank) in present and rank not in self._results:
                self._results[rank] = json.loads((self._folder / result(rank)).read_text())

    def end(self) -> None:
        """See that nothing of the job is left."""
        until = time.monotonic() + _END_S
        complete = len(self._results) == self._wish.tasks  # then it ends by itself in a moment
        patience = time.monotonic() + (5.0 if complete else 0.0)
        cancelled = False
        while time.monotonic() < until:
            state = self._state()
            if state not in (*_BEFORE, *_DURING):
                return
            if not cancelled and time.monotonic() >= patience:
                self._slurm.cancel([self._job_id])
                cancelled = True
            time.sleep(0.2)

    def _state(self) -> str:
        try:
            return self._slurm.show_job(self._job_id).get("JobState", "")
        except SlurmError:  # forgotten: it is gone
            return ""

    def results(self) -> list[dict[str, Any]]:
        """What the ranks left, in their order."""
        return [self._results[rank] for rank in sorted(self._results)]

    def findings(self) -> Iterator[Finding]:
        """What the ranks found, and what became of the job."""
        if self._waited_s is None:
            reason = self._job.get("Reason", "?")
            text = f"job {self._job_id} did not start within {self._wish.patience_s} s ({reason}); it was cancelled"
            yield warn("test job", text, "try when the cluster has room, with a longer --patience, or --nodes 1")
            return
        results = self.results()
        if len(results) < self._wish.tasks:
            yield self._incomplete()
        else:
            hosts = ", ".join(dict.fromkeys(str(r["host"]) for r in results))
            yield ok("test job", f"job {self._job_id} ran on {hosts}; started after {self._waited_s:.1f} s")
        if results:
            yield from judge(results, self._wish)

    def _incomplete(self) -> Finding:
        code = self._job.get("ExitCode", "?").partition(":")[0]
        state = self._job.get("JobState", "?")
        said = _said(self._folder)
        if code == str(NOT_VISIBLE):
            text = f"{self._folder} is not there, or not writable, on all of {self._job.get('NodeList', 'its nodes')}"
            return fail("test job", text, "choose a folder on a shared file system: --root, launch.root")
        text = f"job {self._job_id} is {state}, {len(self._results)} of {self._wish.tasks} ranks told what they found"
        if said:
            return fail("test job", f"{text}: {said}", "mend that first")
        return fail("test job", text, "it printed nothing: is the folder visible on the nodes, and --python there?")


def _said(folder: Path) -> str:
    try:
        lines = [line.strip() for line in _log(folder).read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    told = [line for line in lines if not line.startswith("srun:")] or lines  # srun says only that it failed
    return told[-1] if told else ""


def judge(results: Sequence[Mapping[str, Any]], wish: Wish) -> Iterator[Finding]:
    """From what ranks found to findings."""
    yield _judge_files(results)
    yield _judge_clocks(results)
    yield _judge_versions(results)
    if all("torch" in r for r in results):
        if errors := _errors(results, "product"):
            yield fail("matrix product", errors, "leave that node out, and tell whoever looks after it")
        yield _judge_all_reduce(results, wish)


def _judge_files(results: Sequence[Mapping[str, Any]]) -> Finding:
    if errors := _errors(results, "files"):
        return fail("shared folder", errors, "choose a folder that all nodes see: --root, launch.root")
    trips = dict(results[0].get("round_trips_s") or {})
    if not trips:
        return ok("shared folder", f"writable on {results[0]['host']}")
    slowest = max(trips.values())
    text = f"what a node writes is seen by another, and the answer back, within {slowest:.2f} s"
    if slowest > _SLOW_S:
        return warn("shared folder", text, "state and locks travel as slowly; see its mount options (actimeo)")
    return ok("shared folder", text)


def _judge_clocks(results: Sequence[Mapping[str, Any]]) -> Finding:
    if errors := _errors(results, "clock"):
        return warn("clocks", errors, "could not be compared")
    ahead = {str(r["host"]): (float(r["clock_ahead_s"]), float(r["clock_unsure_s"])) for r in results}
    told = ", ".join(f"{host} {seconds:+.2f} s (give or take {give:.2f})" for host, (seconds, give) in ahead.items())
    if any(abs(seconds) - give > _FAR_S for seconds, give in ahead.values()):
        return warn("clocks", told, "against this machine's; heartbeats look older or newer than they are: use NTP")
    return ok("clocks", f"against this machine's: {told}")


def _judge_versions(results: Sequence[Mapping[str, Any]]) -> Finding:
    if errors := _errors(results, "torch"):
        return fail("python", errors, "choose the Python of the jobs: --python, site.python, site.setup")
    versions = {f"Python {r['python']}, torch {r['torch']}" for r in results}
    if len(versions) > 1:
        return fail("python", f"differs between nodes: {'; '.join(sorted(versions))}", "use one for all: site.python")
    slowest = max(float(r["torch_import_s"]) for r in results)
    return ok("python", f"{versions.pop()} on all; importing torch takes {slowest:.1f} s")


def _judge_all_reduce(results: Sequence[Mapping[str, Any]], wish: Wish) -> Finding:
    kind = "NCCL" if wish.gpus else "gloo"
    if errors := _errors(results, "all_reduce"):
        return fail("all-reduce", f"{kind}: {errors}", "name the network that nodes share: --interface, site.interface")
    met, seconds = (max(float(r[name]) for r in results) for name in ("met_s", "all_reduce_s"))
    told = f"{kind} over {len(results)} ranks: met in {met:.2f} s, 4 MiB summed in {1000 * seconds:.1f} ms"
    return ok("all-reduce", told)


def _errors(results: Sequence[Mapping[str, Any]], step: str) -> str:
    return "; ".join(f"{r['host']}: {r['errors'][step]}" for r in results if step in r["errors"])
