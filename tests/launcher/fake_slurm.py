"""A Slurm of one file: what stands on PATH as sbatch, srun, squeue, sacct, scontrol and scancel in these tests.

``FakeSlurm`` is the tests' side; below it is the program. Messages are Slurm 22.05's own.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")
AWAY = "Unable to contact slurm controller (connect failure)"
LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


class FakeSlurm:
    """The state of a cluster that is a file, and the environment that reaches it."""

    def __init__(self, folder: Path, **state: object) -> None:
        """``state``: ``max_array`` (MaxArraySize), ``max_submit``, ``accounting``, ``partitions``,
        ``at_once`` (jobs have run when sbatch answers), ``test_counts`` (--test-only looks at max_submit too),
        ``config`` and ``partition_settings`` (more of what scontrol shows)."""
        folder.mkdir(parents=True)
        self._file = folder / "state.json"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in COMMANDS:
            (self.bin / name).write_text(
                f"#!/bin/sh\nexec {sys.executable} -IS '{__file__}' {name} '{folder}' \"$@\"\n"
            )
            (self.bin / name).chmod(0o755)
        defaults = {"max_array": 1001, "max_submit": None, "accounting": True, "partitions": ["low"]}
        self._file.write_text(
            json.dumps(
                {
                    **defaults,
                    "test_counts": False,
                    "at_once": False,
                    "config": {},
                    "partition_settings": {},
                    "next": 100,
                    "jobs": {},
                    "calls": [],
                    "faults": [],
                    **state,
                }
            )
        )

    @property
    def env(self) -> dict[str, str]:
        """An environment whose PATH leads here first."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    @property
    def state(self) -> dict:
        return json.loads(self._file.read_text())

    def set(self, **state: object) -> None:
        """Replace parts of the state."""
        self._file.write_text(json.dumps({**self.state, **state}))

    def fault(
        self, command: str, do: str, when: str = "before", times: int = 1, says: str = AWAY, skip: int = 0
    ) -> None:
        """What goes wrong: ``do`` is fail (with words), kill or interrupt (the caller), kill-and-wait (for a pipe)."""
        fault = {"command": command, "do": do, "when": when, "times": times, "says": says, "skip": skip}
        self.set(faults=[*self.state["faults"], fault])

    def calls(self, *start: str) -> list[list[str]]:
        """Calls that began with these words."""
        return [call for call in self.state["calls"] if call[: len(start)] == list(start)]

    @property
    def submitted(self) -> list[int]:
        """Elements of each submission that was taken."""
        return [len(job["states"]) for job in self.state["jobs"].values()]

    def run(self) -> None:
        """Every job that waits runs now, one after the other."""
        state = self.state
        for job_id, job in state["jobs"].items():
            _run(job_id, job, self.env)
        self.set(jobs=state["jobs"])

    def end(self, state: str = "COMPLETED", forget: bool = False) -> None:
        """All jobs end so; ``forget``: squeue knows them no more."""
        jobs = self.state["jobs"]
        for job in jobs.values():
            job["states"] = [state] * len(job["states"])
            job["forgotten"] = forget
        self.set(jobs=jobs)


def main(name: str, folder: Path, words: list[str]) -> int:
    if name == "srun":
        return _srun(words)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / "state.json"
        state = json.loads(file.read_text())
        state["calls"].append([name, *words])
        test = "--test-only" in words
        fault = _due(state, name + (" --test-only" if test else ""))
        file.write_text(json.dumps(state))
        if fault and fault["do"] == "kill-and-wait":
            os.kill(os.getppid(), signal.SIGKILL)
            (folder / "go").read_text()
        elif fault and fault["when"] == "before":
            return _go_wrong(fault, name)
        commands = {"sbatch": _sbatch, "squeue": _squeue, "sacct": _sacct, "scontrol": _scontrol, "scancel": _scancel}
        code, out, err = commands[name](state, words)
        file.write_text(json.dumps(state))
    if fault and fault["when"] == "after" and fault["do"] != "kill-and-wait":
        return _go_wrong(fault, name)
    sys.stdout.write(out)
    sys.stderr.write(err)
    return code


def _due(state: dict, name: str) -> dict | None:
    for fault in state["faults"]:
        if fault["command"] == name and fault["times"]:
            if fault["skip"]:
                fault["skip"] -= 1
                continue
            fault["times"] -= 1
            return fault
    return None


def _go_wrong(fault: dict, name: str) -> int:
    if fault["do"] in ("kill", "interrupt"):
        os.kill(os.getppid(), signal.SIGKILL if fault["do"] == "kill" else signal.SIGINT)
        return 0 if fault["do"] == "kill" else 128 + signal.SIGINT
    sys.stderr.write(f"{name}: error: {fault['says']}\n" if ": " not in fault["says"] else fault["says"] + "\n")
    return 1


def _sbatch(state: dict, words: list[str]) -> tuple[int, str, str]:
    script = words[-1]
    text = Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    array = re.fullmatch(r"0-(\d+)%\d+", options.get("array", ""))
    count = int(array[1]) + 1 if array else 1
    if count > state["max_array"]:
        return 1, "", "sbatch: error: Batch job submission failed: Invalid job array specification\n"
    if options.get("partition", "low") not in state["partitions"]:
        return 1, "", "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    active = sum(s in ("PENDING", "RUNNING") for job in state["jobs"].values() for s in job["states"])
    counts = "--test-only" not in words or state["test_counts"]
    if counts and state["max_submit"] is not None and active + count > state["max_submit"]:
        return 1, "", LIMIT + "\n"
    if "--test-only" in words:
        return 0, "", "sbatch: Job 99 to start at 2030-01-01T00:00:00 using 1 processors on nodes n1 in partition low\n"
    job_id = str(state["next"])
    state["next"] += 1
    job = {"script": script, "line": "sbatch " + " ".join(words), "states": ["PENDING"] * count, "array": bool(array),
           "forgotten": False, "tasks": int(options.get("ntasks-per-node", "1"))}  # fmt: skip
    state["jobs"][job_id] = job
    if state["at_once"]:
        _run(job_id, job, os.environ)
    return 0, f"{job_id}\n", ""


def _run(job_id: str, job: dict, env: Mapping[str, str]) -> None:
    """Run the elements that wait, as slurmd does (sbatch(1), OUTPUT ENVIRONMENT VARIABLES)."""
    for index, state in enumerate(job["states"]):
        if state == "PENDING":
            place = {"SLURM_JOB_ID": job_id, "SLURM_NTASKS": str(job["tasks"]), "SLURM_NNODES": "1"}
            if job["array"]:
                place |= {"SLURM_ARRAY_JOB_ID": job_id, "SLURM_ARRAY_TASK_ID": str(index)}
            text = Path(job["script"]).read_text()
            folder = shlex.split(re.search(r"^#SBATCH (--chdir=.*)$", text, re.MULTILINE)[1])[0].partition("=")[2]
            done = subprocess.run(["bash", job["script"]], cwd=folder, env={**env, **place}, capture_output=True)
            job["states"][index] = "FAILED" if done.returncode else "COMPLETED"


def _elements(state: dict) -> list[tuple[str, dict, str]]:
    return [
        (f"{job_id}_{index}" if job["array"] else job_id, job, element)
        for job_id, job in state["jobs"].items()
        for index, element in enumerate(job["states"])
    ]


def _squeue(state: dict, words: list[str]) -> tuple[int, str, str]:
    rows = [f"{name}|{s}|None|N/A|0:00||{job['script']}" for name, job, s in _elements(state) if not job["forgotten"]]
    return 0, "".join(row + "\n" for row in rows), ""


def _sacct(state: dict, words: list[str]) -> tuple[int, str, str]:
    if not state["accounting"]:
        return 1, "", "Slurm accounting storage is disabled\n"
    if "--format=JobIDRaw,SubmitLine" in words:
        return 0, "".join(f"{job_id}|{job['line']}\n" for job_id, job in state["jobs"].items()), ""
    return 0, "".join(f"{name}|{element}\n" for name, _, element in _elements(state)), ""


def _scontrol(state: dict, words: list[str]) -> tuple[int, str, str]:
    if words[:2] == ["show", "partition"]:
        shown = state["partition_settings"].items()
        return 0, "".join(f"PartitionName={name} {settings}\n" for name, settings in shown), ""
    if words[:2] == ["show", "job"]:
        found = {name: element for name, _, element in _elements(state)}
        if words[-1] not in found:
            return 1, "", "slurm_load_jobs error: Invalid job id specified\n"
        return 0, f"JobId={words[-1]} JobState={found[words[-1]]} Restarts=0\n", ""
    settings = {"MaxArraySize": state["max_array"], **state["config"]}
    return 0, "Configuration data\n" + "".join(f"{name:<23} = {value}\n" for name, value in settings.items()), ""


def _scancel(state: dict, words: list[str]) -> tuple[int, str, str]:
    for name, job, element in _elements(state):
        if name in words and element == "PENDING":
            job["states"][int(name.partition("_")[2] or 0)] = "CANCELLED"
    return 0, "", ""


def _srun(words: list[str]) -> int:
    while words and words[0].startswith("-"):
        words = words[2:] if words[0] in ("--output", "--error") else words[1:]
    ranks = []
    for rank in range(int(os.environ.get("SLURM_NTASKS", "1"))):
        place = {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        ranks.append(subprocess.Popen(words, env={**os.environ, **place}))
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
