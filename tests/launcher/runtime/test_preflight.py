"""The preflight: nodes that cannot write, compute, answer or add; who is named for it; and that it leaves no trace."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from launcher.runtime import node_checks, preflight
from launcher.runtime.errors import Stopped, UserError
from launcher.runtime.failures import AllReduceFailed, NodeFailed, PeerLost
from launcher.runtime.node_checks import try_file, try_product
from launcher.runtime.preflight import Preflight
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from tests.conftest import REPOSITORY
from tests.launcher.runtime.ranks import Plan, ends, queue_env, slurm_env, start, toy_plan, write_plans


@dataclass
class Ranks:
    """Ranks of one start, a node each, as threads of this process."""

    rundir: RunDir
    main_store: TCPStore
    size: int
    faults: dict[int, Callable[[], None]] = field(default_factory=dict)
    """What happens when a rank syncs its file."""
    ended: dict[int, Any] = field(default_factory=dict)
    hung: dict[int, UserError] = field(default_factory=dict)
    stops: dict[int, StopFlag] = field(default_factory=dict)

    def world(self, rank: int) -> World:
        return World(rank=rank, size=self.size, nodes=self.size, node_name=f"n{rank}", source="slurm", incarnation="i1")

    def __call__(self, deadline_s: float = 20, absent: tuple[int, ...] = ()) -> dict[int, Any]:
        """What entering it comes to on each rank that is not ``absent``: None, or the error."""
        threads = [
            threading.Thread(target=self._enter, args=(rank, deadline_s), daemon=True) for rank in range(self.size)
        ]
        for rank, thread in enumerate(threads):
            if rank not in absent:
                thread.start()
        for rank, thread in enumerate(threads):
            if rank not in absent:
                thread.join(1 if rank in self.hung else 60)
        return self.ended

    def _enter(self, rank: int, deadline_s: float) -> None:
        store = TCPStore("127.0.0.1", self.main_store.port, is_master=False) if self.size > 1 else None
        stop = self.stops.setdefault(rank, StopFlag())
        try:
            with Preflight(
                self.world(rank), self.rundir, 1, store, deadline_s, stop, lambda e: self.hung.update({rank: e})
            ):
                self.ended[rank] = None
        except Exception as error:
            self.ended[rank] = error


@pytest.fixture
def ranks(tmp_path, monkeypatch) -> Callable[[int], Ranks]:
    """``ranks(size)``; os.fsync has the faults that a test gives them."""
    found: list[Ranks] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if name.startswith(".preflight-"):
            fault = found[0].faults.get(int(name.partition(".rank")[2].partition(".")[0]))
            if fault:
                fault()
        sync(descriptor)

    def make(size: int) -> Ranks:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        found.append(Ranks(RunDir(tmp_path), store, size))
        return found[0]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(preflight, "_MARGIN_S", 0.3)
    monkeypatch.setattr(preflight, "_SLICE_S", 0.1)
    return make


def fails(number: int) -> Callable[[], None]:
    def fault() -> None:
        raise OSError(number, os.strerror(number))

    return fault


def records(rundir: RunDir) -> list[tuple[Any, ...]]:
    names = ("rank", "host", "kind", "after_another")
    return sorted(tuple(record[name] for name in names) for record in rundir.failure_records())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_whose_nodes_are_well_go_on_and_leave_nothing(ranks, tmp_path, size):
    assert ranks(size)() == dict.fromkeys(range(size))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_node_that_cannot_write_is_named_by_all(ranks, tmp_path, bad):
    three = ranks(3)
    three.faults[bad] = fails(5)
    found = three()
    words = (
        f"node n{bad} did not pass the preflight: writing {tmp_path}/.preflight-i1.rank{bad}.tmp: Input/output error"
    )
    assert isinstance(found[bad], NodeFailed) and str(found[bad]) == words
    for rank in {0, 1, 2} - {bad}:
        assert isinstance(found[rank], PeerLost) and found[rank].code == 76
        assert str(found[rank]) == f"rank {bad} on n{bad} failed first: NodeFailed: {words}"
    # By rank 0 for another, which may not be able to; of rank 0 by itself (launcher.runtime.attempt).
    assert records(three.rundir) == ([(bad, f"n{bad}", "NodeFailed", False)] if bad else [])


@pytest.mark.parametrize("number", [28, 122])  # ENOSPC, EDQUOT
def test_a_full_disk_is_its_users_and_no_nodes_fault(ranks, number):
    two = ranks(2)
    two.faults[1] = fails(number)
    found = two()
    assert type(found[1]) is UserError and found[1].code == 1
    assert str(found[1]).endswith(f"{os.strerror(number)}; make room, then the same command goes on")
    assert isinstance(found[0], PeerLost) and found[0].code == 1 and records(two.rundir) == []


def test_a_product_that_is_wrong_is_its_nodes_fault(ranks, monkeypatch):
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a, b) * 1.5)
    one = ranks(1)
    error = one()[0]
    words = "65536 of 65536 numbers of a matrix product on cpu are wrong"
    assert (type(error), str(error)) == (NodeFailed, f"node n0 did not pass the preflight: {words}")


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_hangs_tells_in_what_and_others_name_its_node(ranks, tmp_path, bad):
    two, free = ranks(2), threading.Event()
    two.faults[bad] = lambda: bool(free.wait(30))  # type: ignore[assignment]
    try:
        thread = threading.Thread(target=two, args=(2,))
        thread.start()
        wait_until(lambda: bad in two.hung and 1 - bad in two.ended)
    finally:
        free.set()
        thread.join(30)
    told = two.hung[bad]
    assert isinstance(told, NodeFailed) and f"writing {tmp_path}" in str(told) and "did not end within 2 s" in str(told)
    other = two.ended[1 - bad]
    words = f"rank {bad} on n{bad} failed first: NodeFailed: node n{bad} did not pass the preflight: "
    assert str(other) == f"{words}rank {bad} did not answer within 2 s"
    assert records(two.rundir) == [(bad, f"n{bad}", "NodeFailed", False)]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_ranks_that_never_come_are_counted(ranks, monkeypatch):
    monkeypatch.setattr(preflight, "JOIN_TIMEOUT_S", 0.3)
    error = ranks(4)(absent=(2, 3))[0]
    assert isinstance(error, PeerLost) and str(error).startswith("ranks 2, 3 of 4 did not come within 0.3 s")


def test_a_rank_that_is_asked_to_stop_does_not_wait_for_the_others(ranks):
    two = ranks(2)
    two.stops[0] = StopFlag()
    two.stops[0].end("asked")
    assert isinstance(two(absent=(1,))[0], Stopped)


@pytest.mark.parametrize(("nodes", "kind"), [(1, NodeFailed), (2, AllReduceFailed)])
def test_of_several_nodes_none_is_blamed_where_sums_are_wrong(tmp_path, monkeypatch, nodes, kind):
    def wrong(*_: object) -> float:
        raise ArithmeticError("3 of 1024 sums over 2 ranks are wrong")

    monkeypatch.setattr(preflight, "try_sum", wrong)
    world = World(size=2, nodes=nodes, node_name="n1", source="slurm")
    with pytest.raises(kind, match=r"3 of 1024 sums over 2 ranks are wrong$"):
        Preflight(world, RunDir(tmp_path), 1, None, 9, StopFlag(), lambda error: None).together()


@pytest.mark.parametrize(("nodes", "kind"), [(1, NodeFailed), (2, AllReduceFailed)])
def test_an_all_reduce_that_does_not_end_has_its_deadline(tmp_path, monkeypatch, nodes, kind):
    hung, free = [], threading.Event()

    def stuck(*_: object) -> float:
        return float(free.wait(30))

    monkeypatch.setattr(preflight, "try_sum", stuck)
    world = World(size=2, nodes=nodes, node_name="n1", source="slurm")
    flight = Preflight(world, RunDir(tmp_path), 1, None, 0.3, StopFlag(), lambda e: (hung.append(e), free.set()))
    flight._watch.start()
    flight.together()
    assert type(hung[0]) is kind and str(hung[0]).endswith("an all-reduce did not end within 0.3 s")


# In processes of their own, as srun starts them

FAULT = """
import os, time

_fsync, fault = os.fsync, os.environ["FAULT"]


def fsync(descriptor):
    if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).startswith(".preflight-"):
        if fault.isdecimal():
            raise OSError(int(fault), os.strerror(int(fault)))
        if fault:
            open(fault.lstrip("+"), "w").close()
        if fault and not fault.startswith("+"):
            time.sleep(1000)
    _fsync(descriptor)


os.fsync = fsync
"""


def job(folder: Path, plan: Plan, faults: Mapping[int, str], size: int = 2) -> list[Any]:
    """Ranks of one step, a node each: EIO as ``5``, or a file to make before it hangs (``+`` before it: goes on)."""
    (folder / "sitecustomize.py").write_text(FAULT)
    path = f"{folder}:{REPOSITORY}:{REPOSITORY}/launcher/plugin"
    plans = write_plans(folder, plan)
    more = {"OMP_NUM_THREADS": "1", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "PYTHONPATH": path}
    names = [{"FAULT": faults.get(rank, ""), "SLURMD_NODENAME": f"n{rank}"} for rank in range(size)]
    return [start(plans, slurm_env(rank, size, size) | more | names[rank]) for rank in range(size)]


def plan_of(folder: Path, nodes: int = 2, **settings: Any) -> Plan:
    plan = toy_plan(folder, nodes=nodes, tasks_per_node=1, steps=2)
    plan.execution["preflight"] = settings
    return plan


def test_a_bad_node_ends_the_job_in_one_line_before_the_task_is_called(tmp_path):
    plan = plan_of(tmp_path)
    found = ends(*job(tmp_path, plan, {1: "5"}))
    words = "node n1 did not pass the preflight: writing "
    assert [end[0] for end in found] == [76, 76]
    assert all(words in end[2] and len(end[2].splitlines()) == 1 for end in found), found
    assert records(plan.rundir) == [(0, "n0", "PeerLost", True), (1, "n1", "NodeFailed", False)]
    first, last = plan.rundir.attempt_events()
    assert (first["event"], first["step"], last["event"], last["code"]) == ("start", None, "end", 76)
    assert plan.rundir.state() == "PREEMPTED", "it may go on"


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_whose_process_stands_still_is_named_by_the_other(tmp_path, bad):
    plan, mark, met = plan_of(tmp_path, deadline_s=5), tmp_path / "mark", tmp_path / "met"
    both = job(tmp_path, plan, {bad: str(mark), 1 - bad: f"+{met}"})
    wait_until(lambda: mark.exists() and met.exists())  # before they have met nobody is waited for so shortly
    os.kill(both[bad].pid, signal.SIGSTOP)  # its own watch stands still, too, and so does the store in rank 0
    try:
        ((code, _, _),) = ends(both[1 - bad])
    finally:
        both[bad].kill()
    ends(both[bad])
    said = plan.rundir.log(1 - bad).read_text()
    assert code == 76 and f"rank {bad} on n{bad} failed first: NodeFailed: node n{bad} did" in said, said
    assert (bad, f"n{bad}", "NodeFailed", False) in records(plan.rundir)


@pytest.mark.parametrize("where", ["well", "off", "local"])
def test_runs_train_where_all_is_well_or_it_is_off_or_this_is_no_step_of_slurms(tmp_path, where):
    plan = plan_of(tmp_path, nodes=2 if where == "well" else 1, enabled=where != "off")
    if where == "local":
        job(tmp_path, plan, {}, size=0)
        env = {"FAULT": "5", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
        found = ends(start(tmp_path / "plans.jsonl", queue_env(0, 1) | env))
    else:
        found = ends(*job(tmp_path, plan, {0: "5"} if where == "off" else {}, size=2 if where == "well" else 1))
    assert {end[0] for end in found} == {0}, found
    assert plan.rundir.state() == "COMPLETED" and not list(plan.rundir.path.glob(".preflight*"))


def test_random_numbers_are_as_before(tmp_path):
    before = torch.get_rng_state().clone()
    try_file(tmp_path / "probe")
    try_product("cpu")
    assert torch.equal(before, torch.get_rng_state()) and not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_told(monkeypatch):
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: product(a, b).index_fill_(0, torch.tensor([3]), torch.nan)
    )
    with pytest.raises(ArithmeticError, match=r"256 of 65536 .* on cpu are wrong, some not finite"):
        try_product("cpu")


def test_what_comes_back_otherwise_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(node_checks, "_PROBE", b"x")
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"y")
    with pytest.raises(OSError, match="what is read is not what was written"):
        try_file(tmp_path / "probe")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        try_file(tmp_path / "gone" / "probe")
