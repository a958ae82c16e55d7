"""Which rank failed first, and what a lost connection means."""

from __future__ import annotations

import pytest

from launcher.runtime.errors import ExitCode, UserError
from launcher.runtime.failures import PeerLost, first_failure, record_failure, told
from launcher.runtime.rundir import RunDir
from launcher.runtime.world import World

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:11699: Connection reset by peer")


def world(rank, size=3):
    return World(rank=rank, size=size, host=f"n{rank}", incarnation="5.r0.s0")


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def test_the_first_to_fail_of_itself_is_named_whoever_wrote_first(rundir):
    assert first_failure(rundir, "5.r0.s0") is None
    record_failure(rundir, world(0), 2, PeerLost("gone"), ExitCode.TRAINING_FAILED)
    assert first_failure(rundir, "5.r0.s0")["rank"] == 0
    record_failure(rundir, world(2), 2, ValueError("bad\nrow"), ExitCode.BUG)
    record_failure(rundir, world(1), 2, KeyError("later"), ExitCode.BUG)
    (rundir.failure("5.r0.s0", 7)).write_text('{"rank"')
    first = first_failure(rundir, "5.r0.s0")
    assert (first["rank"], first["host"], first["attempt"], first["kind"]) == (2, "n2", 2, "ValueError")
    assert (first["message"], first["code"], first["after_another"]) == ("bad\nrow", 70, False)
    assert first_failure(rundir, "6.r0.s0") is None


def test_a_lost_connection_names_the_rank_that_failed_and_ends_with_its_code(rundir):
    record_failure(rundir, world(1), 1, UserError("data.path=x: no such file"), ExitCode.USER_ERROR)
    meant = told(GLOO, rundir, world(0))
    assert isinstance(meant, PeerLost) and meant.code == 1
    assert str(meant).startswith("rank 1 on n1 failed first: UserError: data.path=x: no such file; see ")


def test_a_rank_that_left_no_word_was_killed(rundir):
    meant = told(GLOO, rundir, world(0))
    assert isinstance(meant, PeerLost) and meant.code == 76 and "out of memory?" in str(meant)


@pytest.mark.parametrize(
    "error", [ValueError("Connection reset"), RuntimeError("shape"), UserError("Connection reset")]
)
def test_other_errors_mean_themselves(rundir, error):
    assert told(error, rundir, world(0)) is error
    assert told(GLOO, rundir, World()) is GLOO
