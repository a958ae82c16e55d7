"""Why a run ended: a table of what was really said, and what it means."""

from __future__ import annotations

import pytest

from launcher.manage import causes
from launcher.manage.causes import cause_of

SAID = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total": causes.GPU_MEMORY,
    "RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be": causes.GPU_MEMORY,
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may": causes.MEMORY,
    "slurmstepd: error: Detected 1 oom_kill event in StepId=12.batch": causes.MEMORY,
    "srun: error: n1: task 0: Out Of Memory\nOUT_OF_MEMORY": causes.MEMORY,
    "Traceback (most recent call last):\n  File x\nMemoryError": causes.MEMORY,
    "RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory": causes.MEMORY,
    "OSError: [Errno 12] Cannot allocate memory": causes.MEMORY,
    "OSError: [Errno 28] No space left on device: 'runs/a/status.json'": causes.DISK,
    "OSError: [Errno 122] Disk quota exceeded": causes.DISK,
    "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-22T03:00:00 DUE TO NODE FAILURE, SEE": causes.NODE,
    "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-11-22T03:00:00 DUE TO TIME LIMIT ***": causes.TIME,
    "ModuleNotFoundError: No module named 'torch'": causes.IMPORT,
    "/usr/bin/python3: No module named launcher.runtime.worker": causes.IMPORT,
    "ImportError: libcudnn.so.9: cannot open shared object file": causes.IMPORT,
    "RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:2": causes.PEER,
    "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:1970, remote process": causes.PEER,
    "[rank1]: Watchdog caught collective operation timeout: ... ProcessGroupNCCL": causes.PEER,
    "RuntimeError: Timed out waiting 1800000ms for recv operation to complete": causes.PEER,
    "srun: error: n1: task 1: Segmentation fault (core dumped)": causes.CRASHED,
    "srun: error: n1: task 1: Killed": causes.KILLED,
    "rank 1 ended by SIGKILL": causes.KILLED,
}


@pytest.mark.parametrize(("text", "cause"), SAID.items())
def test_what_was_said(text, cause):
    found = cause_of(["some line\n" + text + "\nanother line"])
    assert found.name == cause.name
    assert found.evidence in " ".join(text.split()) and found.evidence
    assert cause.advice in str(found)


@pytest.mark.parametrize(
    ("kind", "message", "name"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried", "out of GPU memory"),
        ("OSError", "[Errno 28] No space left on device", "disk full"),
        ("ModuleNotFoundError", "No module named 'x'", "something cannot be imported"),
        ("RuntimeError", "Connection closed by peer", "a rank lost its peers"),
        ("UserError", "data.path=a.csv: there is no such file", "data.path=a.csv: there is no such file"),
        ("TrainingFailed", "step 3: the loss is nan", "step 3: the loss is nan"),
        ("ValueError", "shapes (2,) and (3,)", "ValueError: shapes (2,) and (3,)"),
        ("ZeroDivisionError", "", "ZeroDivisionError"),
        ("NodeFailed", "node n2 did not pass the preflight: CUDA error: out of memory",
         "node n2 did not pass the preflight: CUDA error: out of memory"),
        ("AllReduceFailed", "preflight of 4 ranks: NCCL error", "preflight of 4 ranks: NCCL error"),
    ],
)  # fmt: skip
def test_what_a_rank_wrote_down(kind, message, name):
    assert cause_of([], {"kind": kind, "message": message}).name == name


def test_the_most_certain_cause_wins():
    noise = "srun: error: n2: task 1: Killed\nRuntimeError: Connection closed by peer"
    assert cause_of([noise, "slurmstepd: error: Detected 1 oom-kill event(s)"]).name == "out of memory"
    assert cause_of([noise], slurm_state="NODE_FAIL").name == "its node failed"
    lost = {"kind": "PeerLost", "message": "rank 0 lost another rank, which left no word: it was killed"}
    assert cause_of(["srun: error: n2: task 1: Killed"], lost, "OUT_OF_MEMORY").name == "out of memory"
    own = {"kind": "UserError", "message": "no such column"}
    assert cause_of(["Detected 1 oom-kill event"], own, "FAILED").name == "no such column"


@pytest.mark.parametrize(
    ("state", "name"),
    [("OUT_OF_MEMORY", "out of memory"), ("TIMEOUT", "out of time"), ("BOOT_FAIL", "its node failed")],
)
def test_slurms_word(state, name):
    assert cause_of([""], slurm_state=state).name == name


def test_our_own_line_and_the_end_of_a_traceback():
    assert str(cause_of(["error: first\nerror: data.path=x: there is no such file\n"])).startswith("data.path=x")
    assert cause_of(["Traceback (most recent call last):\n  File\nKeyError: 'a'\n"]).name == "KeyError: 'a'"


@pytest.mark.parametrize("texts", [[], [""], ["all went well\nstep 6/6 loss 1.0\n"]])
def test_nothing_tells(texts):
    assert cause_of(texts, None, "FAILED") is None


def test_a_long_line_is_cut():
    assert len(cause_of(["error: " + "x" * 5000]).name) == 200
