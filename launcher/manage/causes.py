"""Why a run ended, as far as what its ranks, its job and Slurm left behind can tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cause:
    """Why a run ended, and what to try."""

    name: str
    advice: str
    evidence: str = ""
    """The words that tell it."""

    def __str__(self) -> str:
        """One line."""
        evidence = f" ({self.evidence})" if self.evidence else ""
        return f"{self.name}{evidence}; {self.advice}" if self.advice else f"{self.name}{evidence}"


GPU_MEMORY = Cause("out of GPU memory", "set hardware.micro_batch, which leaves the result as it is")
MEMORY = Cause("out of memory", "ask for more with hardware.mem_gb, or set data.workers=0 or hardware.micro_batch")
DISK = Cause("disk full", "make room, or choose launch.root on another disk; then the same command goes on")
NODE = Cause("its node failed", "Slurm requeues the job; else the same command goes on from the last checkpoint")
TIME = Cause("out of time", "ask for more with hardware.time_min; the same command goes on from the last checkpoint")
IMPORT = Cause("something cannot be imported", "install it, or set site.python and site.setup to the job's Python")
PEER = Cause("a rank lost its peers", "look for another rank that failed first, or at the network (site.interface)")
KILLED = Cause("killed", "most often for its memory: ask for more with hardware.mem_gb; else somebody ended it")
CRASHED = Cause("crashed inside native code", "see the last lines of its log")

_BY_PREFLIGHT = {
    "NodeFailed": "the run is requeued to other nodes; tell whoever looks after this one",
    "AllReduceFailed": "look at the network between its nodes (site.interface, doctor)",
}
"""What to try where a rank's error says all of the cause: its words may stand for less (``runtime.failures``)."""
_BY_SLURM = {
    "OUT_OF_MEMORY": MEMORY, "NODE_FAIL": NODE, "BOOT_FAIL": NODE, "TIMEOUT": TIME, "DEADLINE": TIME,
}  # fmt: skip
"""What Slurm's own states say for certain."""
_BY_WORDS: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(words, flags))
    for cause, words, flags in (
        (GPU_MEMORY, r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED", 0),
        (MEMORY, r"oom[-_ ]kill|OUT_OF_MEMORY|out-of-memory handler|\bMemoryError\b|Cannot allocate memory|"
                 r"DefaultCPUAllocator: (?:not enough|can't allocate) memory|Exceeded job memory limit", re.IGNORECASE),
        (DISK, r"No space left on device|Disk quota exceeded|\bENOSPC\b|\bEDQUOT\b|Errno 28\b|Errno 122\b", 0),
        (NODE, r"\bNODE_FAIL\b|DUE TO NODE FAILURE|Node failure on|Communication connection failure", re.IGNORECASE),
        (TIME, r"DUE TO TIME LIMIT|\bTIMEOUT\b", 0),
        (IMPORT, r"\b(?:ModuleNotFoundError|ImportError)\b|No module named|cannot open shared object file", 0),
        (PEER, r"Connection closed by peer|Connection reset by peer|connectFullMesh|DistBackendError|DistNetworkError|"
               r"ProcessGroupNCCL|\bNCCL\b.*(?:error|timeout|timed out|abort)|ncclSystemError|ncclRemoteError|"
               r"DistStoreError|Socket Timeout|Timed out waiting \d+ms|\bPeerLost\b|lost another rank", re.IGNORECASE),
        (CRASHED, r"Segmentation fault|\bSIGSEGV\b|\bSIGABRT\b|\bSIGBUS\b|Bus error|Fatal Python error", 0),
        (KILLED, r"\bSIGKILL\b|task \d+: Killed|\bKilled\b|exit code 137|signal 9\b", 0),
    )
)  # fmt: skip
"""From the most certain to the least: who was killed for its memory also loses its peers, not the other way round."""
_LONGEST = 200


_FIRST = re.compile(r"srun: error: (?P<host>[^\s:]+): tasks? (?P<rank>\d+)[\d,-]*: (?P<how>.+)")
_THEN_ALL = "_step_signal: Terminating StepId"
"""What srun says, with --kill-on-bad-exit, right after the first task that failed."""


@dataclass(frozen=True)
class FirstTask:
    """The task that srun saw fail first: also one that was killed, and left no word itself."""

    rank: int
    host: str
    how: str
    """``Killed``, ``Exited with exit code 3``, …"""


def first_task(printed: str) -> FirstTask | None:
    """Read it from what srun printed; several starts may have printed there, and the newest counts."""
    end = printed.rfind(_THEN_ALL)
    found = list(_FIRST.finditer(printed[:end] if end >= 0 else printed))
    return FirstTask(int(found[-1]["rank"]), found[-1]["host"], found[-1]["how"].strip()) if found else None


def cause_of(
    texts: Sequence[str], record: Mapping[str, Any] | None = None, slurm_state: str = "", how: str = ""
) -> Cause | None:
    """The likeliest cause, or None where nothing tells.

    Args:
        texts: what was said at the end: reasons and logs, the most telling first.
        record: what the rank that failed first wrote: ``kind`` and ``message`` of its error.
        slurm_state: Slurm's state of the job.
        how: how that rank ended in srun's words, where it wrote nothing.
    """
    if record and record.get("kind") in _BY_PREFLIGHT:
        return Cause(_short(str(record.get("message"))), _BY_PREFLIGHT[record["kind"]])
    said = f"{record.get('kind')}: {record.get('message')}" if record else how
    found = _in_words(said) if said else None
    consequence = (PEER.name, KILLED.name)  # of something else, or of nothing that can be seen
    if found is not None and found.name not in consequence:
        return found
    if record and found is None:
        return _of_error(str(record.get("kind")), str(record.get("message") or ""))
    if slurm_state in _BY_SLURM:
        return _BY_SLURM[slurm_state]
    elsewhere = _in_words(*texts)
    if found is not None and (elsewhere is None or elsewhere.name in consequence):
        return found
    return elsewhere or _users(texts)


def _of_error(kind: str, message: str) -> Cause:
    words = _short(message)
    if kind in ("UserError", "TrainingFailed", "Hung"):
        return Cause(words, "")
    return Cause(f"{kind}: {words}" if words else kind, "the traceback is in its log")


def _in_words(*texts: str) -> Cause | None:
    """The most certain cause in any of ``texts``."""
    for cause, words in _BY_WORDS:
        for text in texts:
            if found := words.search(text):
                line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
                return Cause(cause.name, cause.advice, _short(line))
    return None


def _users(texts: Sequence[str]) -> Cause | None:
    """Our own one line for what the user can mend; or the error that a traceback ends with."""
    for pattern in (r"^error: (.+)$", r"^(\w*(?:Error|Exception|Interrupt)\b.*)$"):
        for text in texts:
            if found := re.findall(pattern, text, re.MULTILINE):
                return Cause(_short(found[-1]), "")
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
