"""The hang watch in real processes: stuck, stopped, alive; what they leave behind and what they end with."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from launcher.runtime import hang_report
from launcher.runtime.errors import ExitCode
from launcher.runtime.hang_report import dump_flight_record, dump_stacks, flight_recorder_env
from launcher.runtime.watchdog import Check, Watchdog
from tests.conftest import REPOSITORY
from tests.launcher.runtime.test_distributed import free_port

_CHILD = """
import logging, os, signal, sys, threading, time
from pathlib import Path
from launcher.runtime.hang_report import dump_flight_record, dump_stacks, end_now
from launcher.runtime.watchdog import Check, Watchdog

logging.basicConfig(level=logging.INFO)
folder = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
who = f"rank {rank} on n1"

def hung(message):
    print(message, flush=True)
    stacks = lambda: dump_stacks(folder / "logs" / f"rank{rank}.hang.txt", who=who, where=message)
    record = lambda: dump_flight_record(folder / "logs" / "flight.rank", folder / "logs" / f"rank{rank}.json", rank)
    end_now(76, stacks, record)

def lost(reason):
    print(reason, flush=True)
    end_now(75)

def watched(timeout_s, *checks, on_hang=hung):
    return Watchdog(timeout_s, who=who, on_hang=on_hang, on_lost=lost, checks=checks)
"""


def child(code: str, folder: Path, **env: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-uc", _CHILD + textwrap.dedent(code), str(folder)]
    whole = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen(words, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        said = process.communicate(timeout=60)
    finally:
        process.kill()
    return (process.returncode, *said)


STUCK = {
    "asleep": "time.sleep(1000)",
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a pipe": "os.read(os.pipe()[0], 1)",
    "a spin": "while True: pass",
}


@pytest.mark.parametrize("how", STUCK)
def test_a_rank_that_is_stuck_tells_where_and_ends(how, tmp_path):
    code = f"""
    def train_step():
        {STUCK[how]}

    with watched(0.5) as watch:
        watch.beat("step 12")
        train_step()
    """
    returncode, said, log = end_of(child(code, tmp_path))
    assert returncode == ExitCode.STOPPED_NOT_SAVED, log
    assert said == "rank 0 on n1 made no progress for 0.5 s (last: step 12)\n"
    stacks = (tmp_path / "logs" / "rank0.hang.txt").read_text()
    assert stacks.startswith("rank 0 on n1, ") and "(last: step 12)" in stacks.splitlines()[0]
    assert "in train_step" in stacks and "MainThread" in stacks
    assert not list((tmp_path / "logs").glob("*flight*"))  # torch was not even imported


def test_a_rank_that_beats_lives_and_one_without_a_limit_may_be_silent(tmp_path):
    code = """
    with watched(0.5) as watch:
        until = time.monotonic() + 2  # of progress: four times the limit
        while time.monotonic() < until:
            watch.beat("step")
            time.sleep(0.02)
    with watched(None):
        time.sleep(1)
    print("done")
    """
    assert end_of(child(code, tmp_path))[:2] == (0, "done\n")


def test_the_time_in_which_the_whole_process_stood_still_is_no_hang(tmp_path):
    code = """
    with watched(2.0) as watch:
        print("ready", flush=True)
        for line in sys.stdin:  # silent until it is told what to do
            break
        print("done", flush=True)
    """
    words = [sys.executable, "-uc", _CHILD + textwrap.dedent(code), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env=env, **pipes)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(5)  # the fault itself: more than twice the limit
    process.send_signal(signal.SIGCONT)
    process.stdin.write("go\n")
    assert end_of(process)[:2] == (0, "done\n")


@pytest.mark.parametrize("act", ["raise OSError('full')", "threading.Event().wait()"], ids=["raises", "never ends"])
def test_a_report_that_fails_or_never_ends_does_not_keep_the_process(act, tmp_path):
    code = f"""
    def act():
        {act}

    with watched(0.2, on_hang=lambda message: end_now(76, act, lambda: print("last", flush=True), patience_s=1)):
        time.sleep(1000)
    """
    returncode, said, log = end_of(child(code, tmp_path))
    assert returncode == ExitCode.STOPPED_NOT_SAVED
    assert said == ("" if "Event" in act else "last\n")
    assert ("OSError: full" in log) == ("OSError" in act)


def test_a_report_that_keeps_the_interpreter_to_itself_is_ended_by_the_kernel(tmp_path):
    code = """
    import ctypes
    hold = ctypes.PyDLL(None).pause  # called with the interpreter's lock held
    with watched(0.2, on_hang=lambda message: end_now(76, hold, patience_s=0.2)):
        time.sleep(1000)
    """
    assert end_of(child(code, tmp_path))[0] == -signal.SIGALRM


def test_what_should_have_ended_it_raises_and_it_ends_all_the_same(tmp_path):
    code = """
    with watched(0.2, on_hang=lambda message: 1 / 0):
        time.sleep(1000)
    """
    returncode, _, log = end_of(child(code, tmp_path))
    assert returncode == ExitCode.STOPPED_NOT_SAVED
    assert "made no progress" in log and "ZeroDivisionError" in log


def test_stacks_that_cannot_be_written_go_to_stderr(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    code = """
    def train_step():
        time.sleep(1000)

    with watched(0.2):
        train_step()
    """
    returncode, _, log = end_of(child(code, tmp_path))
    assert returncode == ExitCode.STOPPED_NOT_SAVED
    assert "cannot be written" in log and "in train_step" in log


def test_a_check_that_says_lost_ends_it_though_training_goes_on_and_another_check_fails(tmp_path):
    code = """
    def failing():
        raise OSError("stale file handle")

    answers = iter([None, None, "superseded by attempt 4"])
    checks = Check(0.05, failing), Check(0.1, lambda: next(answers))
    with watched(None, *checks) as watch:
        while True:
            watch.beat("step")
    """
    returncode, said, log = end_of(child(code, tmp_path))
    assert (returncode, said) == (75, "superseded by attempt 4\n")
    assert "stale file handle" in log


def test_a_check_that_is_stuck_hides_no_hang(tmp_path):
    code = """
    with watched(0.5, Check(0.05, threading.Event().wait)):
        time.sleep(1000)
    """
    assert end_of(child(code, tmp_path))[0] == ExitCode.STOPPED_NOT_SAVED


def test_a_watch_that_was_stopped_leaves_no_thread_and_asks_no_more():
    asked = threading.Event()
    told: list[str] = []

    def ask() -> None:
        asked.set()

    with Watchdog(1000, who="rank 0", on_hang=told.append, on_lost=told.append, checks=[Check(0.01, ask)]) as watch:
        assert {"hang watch", "checks"} <= {thread.name for thread in threading.enumerate()}
        assert asked.wait(30)
    watch.stop()
    assert not {"hang watch", "checks"} & {thread.name for thread in threading.enumerate()}
    assert told == []


def test_a_hang_is_told_once():
    told: list[str] = []
    heard = threading.Event()

    def hear(message: str) -> None:
        told.append(message)
        heard.set()

    watch = Watchdog(0.05, who="rank 3 on n2", on_hang=hear, on_lost=told.append)
    watch.beat("validation batch 7")
    with watch:
        assert heard.wait(30)
    assert told == ["rank 3 on n2 made no progress for 0.05 s (last: validation batch 7)"]


def test_reports_of_two_attempts_stand_below_each_other(tmp_path):
    for attempt in (1, 2):
        dump_stacks(tmp_path / "logs" / "hang.txt", who="rank 0 on n1", where=f"attempt {attempt}")
    text = (tmp_path / "logs" / "hang.txt").read_text()
    assert text.count("(most recent call first)") >= 2
    assert text.index("attempt 1") < text.index("attempt 2")


def test_without_a_process_group_there_is_no_record_of_collectives(tmp_path):
    dump_flight_record(tmp_path / "flight.rank", tmp_path / "rank0.json", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torch_version", ["2.6.0", "2.13.0+cu130"])
def test_torch_is_given_the_names_that_it_knows_and_none_that_it_warns_of(torch_version, tmp_path, monkeypatch):
    monkeypatch.setattr(hang_report, "version", lambda name: torch_version)
    hang_report._torch.cache_clear()
    new = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/flight.rank"}
    old = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{tmp_path}/flight.rank"}
    expected = new | {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"} | (old if torch_version == "2.6.0" else {})
    assert flight_recorder_env(tmp_path / "flight.rank") == expected


def test_nccls_record_lies_where_torchs_own_tool_finds_it(tmp_path, monkeypatch):
    import torch
    from torch.distributed.flight_recorder.components.loader import read_dump

    record = {"entries": [], "version": "2.10", "pg_config": {}}
    c10d = torch._C._distributed_c10d
    monkeypatch.setattr(c10d, "_dump_nccl_trace", lambda: pickle.dumps(record), raising=False)
    monkeypatch.setattr("launcher.runtime.hang_report._has_group", lambda torch, backend: backend == "nccl")
    dump_flight_record(tmp_path / "flight.rank", tmp_path / "rank3.json", 3)
    assert [file.name for file in tmp_path.iterdir()] == ["flight.rank3"]
    assert read_dump("flight.rank", str(tmp_path / "flight.rank3")) == record | {"host_name": "host_rank3", "rank": 3}


_TWO_RANKS = """
from launcher.runtime.hang_report import flight_recorder_env

os.environ |= flight_recorder_env(folder / "logs" / "flight.rank")
import torch
from launcher.runtime.distributed import process_group, sum_over_ranks
from launcher.runtime.world import World

def train_step():
    sum_over_ranks(torch.ones(3))

with process_group(World.from_env(os.environ, "cpu")):
    with watched(2.0) as watch:
        for step in (1, 2, 3):
            watch.beat(f"step {step}")
            if step == 3 and rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            train_step()
"""


def test_of_two_ranks_the_one_that_waits_for_a_stopped_one_is_found_and_ended(tmp_path):
    """The stopped rank's own watch stands still with it; its stacks cannot be had, its peer's name the collective."""
    port = str(free_port())
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [child(_TWO_RANKS, tmp_path, RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(2)]
    try:
        os.waitid(os.P_PID, ranks[1].pid, os.WSTOPPED | os.WNOWAIT)
        returncode, said, log = end_of(ranks[0])
        assert returncode == ExitCode.STOPPED_NOT_SAVED, log
        assert said == "rank 0 on n1 made no progress for 2 s (last: step 3)\n"
        stacks = (tmp_path / "logs" / "rank0.hang.txt").read_text()
        main = stacks[stacks.rindex("(most recent call first)") :]
        assert "in train_step" in main and "in all_reduce" in main
        record = json.loads((tmp_path / "logs" / "rank0.json").read_text())
        assert "Warning" not in log
        newest = record["entries"][-1]
        assert newest["profiling_name"] == "gloo:all_reduce" and not newest["retired"]
        assert ranks[1].poll() is None  # nothing but SIGKILL or SIGCONT moves it: srun -K, or the local queue
        assert not (tmp_path / "logs" / "rank1.hang.txt").exists()
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate(timeout=60)


def test_a_stopped_rank_that_goes_on_after_its_peer_left_fails_instead_of_hanging(tmp_path):
    port = str(free_port())
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [child(_TWO_RANKS, tmp_path, RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(2)]
    os.waitid(os.P_PID, ranks[1].pid, os.WSTOPPED | os.WNOWAIT)
    assert end_of(ranks[0])[0] == ExitCode.STOPPED_NOT_SAVED
    ranks[1].send_signal(signal.SIGCONT)
    returncode, said, log = end_of(ranks[1])
    assert (returncode, said) == (1, "")
    assert "Connection" in log
