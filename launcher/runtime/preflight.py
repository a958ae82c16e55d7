"""Before a task is called on a node of Slurm: can this node write, compute, and add with the others.

Each rank tries its own part (``alone``) and tells rank 0 in the store in which the ranks have met. Rank 0 waits for all
of them, a deadline long, and says what came of it: so a node that hangs is named by another one. Then all add up some
numbers in the process group (``together``). The run has the same bits as without.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from launcher.runtime.errors import ExitCode, Stopped, UserError
from launcher.runtime.failures import AllReduceFailed, NodeFailed, PeerLost, record_failure
from launcher.runtime.node_checks import try_file, try_product, try_sum
from launcher.runtime.rendezvous import JOIN_TIMEOUT_S
from launcher.runtime.rundir import RunDir
from launcher.runtime.signals import StopFlag
from launcher.runtime.watchdog import Watchdog
from launcher.runtime.world import World

log = logging.getLogger(__name__)

_WORDS = 1024
"""Numbers that the ranks add up."""
_MARGIN_S = 5.0
"""How much longer than the deadline another rank is waited for: it may yet tell by itself what it hangs in."""
_SLICE_S = 1.0
"""How often a rank that waits looks whether it was asked to stop."""
_KEY = "seemore/preflight/"


class Preflight:
    """The preflight of one rank, as a context: entered it has tried what this node does alone, and knows of the others.

    Raises (from entering it, and from ``together``):
        NodeFailed: this rank's node did not pass.
        PeerLost: another rank's did not; its record is written.
        AllReduceFailed: the nodes do not compute together, and which of them is at fault cannot be told.
        UserError: the disk is full.
        Stopped: ``stop`` was set.
    """

    def __init__(
        self,
        world: World,
        rundir: RunDir,
        attempt: int,
        store: Any,
        deadline_s: float,
        stop: StopFlag,
        on_hang: Callable[[UserError], None],
    ) -> None:
        """``store`` is the ranks' own; None in a world of one. ``on_hang`` tells why this rank hangs, and ends it."""
        self._world, self._rundir, self._attempt, self._store = world, rundir, attempt, store
        self._deadline_s, self._stop, self._on_hang = deadline_s, stop, on_hang
        self._doing = ""
        self._hung_as: Callable[[str], UserError] = self._node_failed
        self._main_node = world.node
        who = f"rank {world.rank} on {world.node}"
        self._watch = Watchdog(deadline_s, who=who, on_hang=self._hangs, on_lost=self._hangs)

    def __enter__(self) -> Preflight:
        self._watch.start()
        try:
            self._alone()
        except BaseException:
            self._watch.stop()
            raise
        self._at("forming the process group", self._all_reduce_failed)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.stop()

    def together(self) -> None:
        """Add up numbers with the other ranks, in the process group; the last thing that is watched."""
        world = self._world
        if world.size > 1:
            self._at("an all-reduce", self._all_reduce_failed)
            try:
                try_sum(world.rank, world.size, world.device, _WORDS)
            except ArithmeticError as error:
                raise self._all_reduce_failed(str(error)) from None
        self._watch.stop()

    def _alone(self) -> None:
        world = self._world
        if world.size > 1:
            self._arrive()
        try:
            self._try_alone()
        except UserError as error:
            self._tell(error)
            raise
        if world.size > 1:
            self._report()
            self._judge() if world.is_main else self._hear()

    def _try_alone(self) -> None:
        file = self._rundir.preflight(self._world.incarnation, self._world.rank)
        self._at(f"writing {file}", self._node_failed)
        try:
            try_file(file)
            self._at(f"a matrix product on {self._world.device}", self._node_failed)
            try_product(self._world.device)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # every node would find it so
                raise UserError(f"{file}: {error.strerror}; make room, then the same command goes on") from None
            raise self._node_failed(f"{self._doing}: {error.strerror or error}") from None
        except (ArithmeticError, RuntimeError) as error:
            raise self._node_failed(str(error)) from None
        if self._stop:
            raise Stopped

    # Among several ranks: what is told in the store, and by whom

    def _arrive(self) -> None:
        world, store = self._world, self._store
        self._at("telling the other ranks that it is there", self._node_failed)
        store.set(f"{_KEY}here/{world.rank}", world.node)
        if store.add(f"{_KEY}arrived", 1) == world.size:
            store.set(f"{_KEY}all-here", "")

    def _report(self) -> None:
        self._store.set(f"{_KEY}fine/{self._world.rank}", "")
        if self._store.add(f"{_KEY}reported", 1) == self._world.size:
            self._store.set(f"{_KEY}reports", "")

    def _tell(self, error: UserError) -> None:
        """Have rank 0, or by rank 0 all, hear at once that this rank failed."""
        if self._world.size == 1:
            return
        said = _failure(self._world.rank, self._world.node, error)
        self._store.set(f"{_KEY}verdict" if self._world.is_main else f"{_KEY}failed", json.dumps(said))
        self._store.set(f"{_KEY}reports", "")

    def _judge(self) -> None:
        """Rank 0: wait for what the others report, and tell all of them what came of it."""
        self._require_all_here()
        failed: dict[str, Any] | None = None
        if not self._await("reports", self._deadline_s + _MARGIN_S):
            missing = [r for r in range(self._world.size) if not self._store.check([f"{_KEY}fine/{r}"])]
            if missing:
                failed = self._hangs_there(missing[0], self._node_of(missing[0]))
        elif self._store.check([f"{_KEY}failed"]):
            failed = json.loads(self._store.get(f"{_KEY}failed"))
        if failed:
            self._record_for(failed)
        self._store.set(f"{_KEY}verdict", json.dumps(failed or {}))
        self._require_fine(failed or {})

    def _hear(self) -> None:
        """Every other rank: wait for what rank 0 says."""
        self._require_all_here()
        self._main_node = self._node_of(0)
        self._at("waiting for rank 0", self._main_failed)
        if not self._await("verdict", self._deadline_s + 3 * _MARGIN_S):
            failed = self._hangs_there(0, self._main_node)
            if self._world.rank == 1:
                self._record_for(failed)
            self._require_fine(failed)
        self._require_fine(json.loads(self._store.get(f"{_KEY}verdict")))

    def _require_all_here(self) -> None:
        if not self._await("all-here", JOIN_TIMEOUT_S):
            gone = [r for r in range(self._world.size) if not self._store.check([f"{_KEY}here/{r}"])]
            ranks = f"rank{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone[:8]))}"
            raise PeerLost(f"{ranks} of {self._world.size} did not come within {JOIN_TIMEOUT_S:g} s; see the job's log")

    def _await(self, name: str, timeout_s: float) -> bool:
        """Whether the key is there in time."""
        until = time.monotonic() + timeout_s
        while True:
            if self._stop:
                raise Stopped
            self._at(f"waiting for other ranks ({name})", self._main_failed)
            try:
                self._store.wait([_KEY + name], timedelta(seconds=_SLICE_S))
                return True
            except dist.DistStoreError:
                if time.monotonic() >= until:
                    return False

    def _node_of(self, rank: int) -> str:
        return str(self._store.get(f"{_KEY}here/{rank}").decode())

    def _hangs_there(self, rank: int, node: str) -> dict[str, Any]:
        words = f"rank {rank} did not answer within {self._deadline_s:g} s"
        return _failure(rank, node, _node_failed(node, words))

    def _record_for(self, failed: Mapping[str, Any]) -> None:
        """Write the failure of a rank that may not be able to."""
        there = replace(self._world, rank=int(failed["rank"]), node_name=str(failed["node"]))
        if failed["kind"] == NodeFailed.__name__ and not self._rundir.failure(there.incarnation, there.rank).exists():
            record_failure(self._rundir, there, self._attempt, NodeFailed(failed["message"]), NodeFailed.code)

    def _require_fine(self, failed: Mapping[str, Any]) -> None:
        if failed:
            where = f"rank {failed['rank']} on {failed['node']}"
            lost = PeerLost(f"{where} failed first: {failed['kind']}: {failed['message']}")
            lost.code = ExitCode(int(failed["code"]))
            raise lost

    # What this rank is at, and what it means where it stays there

    def _at(self, doing: str, hung_as: Callable[[str], UserError]) -> None:
        self._doing, self._hung_as = doing, hung_as
        self._watch.beat(f"preflight: {doing}")

    def _hangs(self, message: str) -> None:
        error = self._hung_as(f"{self._doing} did not end within {self._deadline_s:g} s")
        log.error("%s", message)
        self._on_hang(error)

    def _node_failed(self, words: str) -> UserError:
        return _node_failed(self._world.node, words)

    def _main_failed(self, words: str) -> UserError:
        """The store, which lives in rank 0's process, does not answer."""
        if self._world.is_main:
            return self._node_failed(words)
        failed = self._hangs_there(0, self._main_node)
        if self._world.rank == 1:
            self._record_for(failed)
        return PeerLost(f"rank 0 on {self._main_node} failed first: {failed['kind']}: {failed['message']}")

    def _all_reduce_failed(self, words: str) -> UserError:
        if self._world.nodes == 1:
            return self._node_failed(words)
        return AllReduceFailed(f"preflight of {self._world.size} ranks on {self._world.nodes} nodes: {words}")


def _node_failed(node: str, words: str) -> NodeFailed:
    return NodeFailed(f"node {node} did not pass the preflight: {words}")


def _failure(rank: int, node: str, error: UserError) -> dict[str, Any]:
    return {
        "rank": rank, "node": node, "kind": type(error).__name__, "message": str(error), "code": int(error.code)
    }  # fmt: skip
