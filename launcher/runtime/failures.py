"""Which rank of a start failed first, and of what: a small file from each that could still write one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode, TrainingFailed, UserError
from launcher.runtime.files import write_json
from launcher.runtime.redaction import scrubbed
from launcher.runtime.rundir import RunDir
from launcher.runtime.world import World

_LOST = ("Connection closed", "Connection reset", "Read error", "Write error", "Broken pipe", "Timed out", "NCCL")
"""What gloo, NCCL and torch's store say of a peer that is gone."""
_LOOK_S = 1.0
"""How long to wait for the file of the rank that failed first: it writes it before it lets go of its peers."""


class PeerLost(UserError):
    """Another rank is gone; ``code`` is what that rank ended with where that is known, else STOPPED_NOT_SAVED."""

    code = ExitCode.STOPPED_NOT_SAVED


class Hung(UserError):
    """This rank made no progress for too long; it may do so when it is started again."""

    code = ExitCode.STOPPED_NOT_SAVED


class NodeFailed(UserError):
    """The node of this rank did not pass the preflight; on another one the run may go well."""

    code = ExitCode.STOPPED_NOT_SAVED


class AllReduceFailed(UserError):
    """Nodes that each passed do not compute together in the preflight; which of them is at fault is not known."""

    code = ExitCode.STOPPED_NOT_SAVED


BROKE = (Hung.__name__, NodeFailed.__name__, AllReduceFailed.__name__)
"""Kinds of errors after which a rank ends as one that was asked to stop does, though nobody had asked it to."""


def record_failure(rundir: RunDir, world: World, attempt: int, error: BaseException, code: ExitCode) -> None:
    """Write why this rank failed: rank, host, attempt, time (UTC), error's kind and message, exit code.

    ``after_another`` is true where it only lost a peer. A disk that is full is passed over: ``error`` is what counts.
    """
    file = rundir.failure(world.incarnation, world.rank)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            file,
            {
                "rank": world.rank,
                "host": world.node,
                "attempt": attempt,
                "time": datetime.now(UTC).isoformat(timespec="microseconds"),
                "kind": type(error).__name__,
                "message": scrubbed(str(error)),
                "code": int(code),
                "after_another": isinstance(error, PeerLost),
            },
        )
    except OSError:
        return


def first_failure(rundir: RunDir, incarnation: str) -> dict[str, Any] | None:
    """The record of the rank that failed first of itself; of those that only lost a peer where there is no other."""
    return first_of([record for record in rundir.failure_records() if record["incarnation"] == incarnation])


def first_of(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the records of one start the one that the others followed from."""
    order = ("after_another", "time", "rank")
    return min(records, key=lambda record: [str(record.get(name)) for name in order], default=None)


def told(error: Exception, rundir: RunDir, world: World) -> Exception:
    """``error``, or what it means where it only says that a peer is gone: a ``PeerLost`` naming the rank that failed.

    A rank that was killed leaves no word; then the message says where to look.
    """
    if world.size == 1 or isinstance(error, UserError) or not _lost_a_peer(error):
        return error
    deadline = time.monotonic() + _LOOK_S
    first = first_failure(rundir, world.incarnation)
    while first is None and time.monotonic() < deadline:
        time.sleep(0.05)
        first = first_failure(rundir, world.incarnation)
    if first is None:
        reason = f"rank {world.rank} on {world.node} lost another rank, which left no word: it was killed, or its node "
        return PeerLost(reason + f"is gone (out of memory? see {rundir.log(0).parent} and the job's own log)")
    where = f"rank {first['rank']} on {first['host']}"
    lost = PeerLost(f"{where} failed first: {first['kind']}: {first['message']}; see {rundir.log(first['rank'])}")
    lost.code = ExitCode(first["code"])
    return lost


def weights_not_finite(step: int, name: str | None) -> TrainingFailed:
    """The weights ``name`` (None: some of another rank's) were not finite when ``step`` should have been saved."""
    return TrainingFailed(
        f"step {step}: the weights are not finite ({name or 'of another rank'}), nothing of it was saved; lower the "
        "learning rate, warm up longer or clip the gradients"
    )


def cannot_be_saved(run: Path, step: int, why: str) -> UserError:
    """Saves of ``run`` have failed too often, the last one in ``step`` for ``why`` (empty: on another rank)."""
    return UserError(
        f"run {run}: step {step} cannot be saved: {why or 'another rank could not'}; mend that (is the disk full?), "
        "then the same command goes on"
    )


def _lost_a_peer(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
