"""``launcher logs``: whose log, why the run ended, and a log that is followed through a requeue."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.manage.evidence import gather, tail_of
from launcher.manage.logs import Follower, last_lines, show_logs
from launcher.manage.states import run_states
from launcher.manage.terminal import lines_of, printable
from launcher.runtime.errors import UserError
from tests.launcher.made_sweep import MadeSweep
from tests.launcher.recorded_slurm import RecordedSlurm


@pytest.fixture
def slurm(tmp_path):
    return RecordedSlurm(tmp_path / "slurm")


@pytest.fixture
def sweep(tmp_path):
    """A run of two ranks, job 12, that has begun."""
    made = MadeSweep(tmp_path / "runs" / "demo")
    made.run("abc1")
    made.submitted("abc1")
    made.started("abc1", hosts=["n1", "n2"])
    for rank in (0, 1):
        write(made.dir.run("abc1").log(rank), f"rank {rank} begins\n")
    return made


def write(path, text, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.write(text)


def evidence(sweep, rank=None):
    (state,) = run_states(sweep.dir, None)
    return gather(sweep.dir, state, rank)


def test_the_rank_that_failed_first_of_itself(sweep):
    sweep.status("abc1", "FAILED", "rank 1 failed first")
    sweep.failure("abc1", 0, "PeerLost", "rank 1 on n2 failed first", time="2026-11-22T03:00:59", after_another=True)
    sweep.failure("abc1", 1, "OSError", "[Errno 28] No space left on device")
    found = evidence(sweep)
    assert (found.rank, found.host, found.file) == (1, "n2", sweep.dir.run("abc1").log(1))
    assert found.cause.name == "disk full"
    assert evidence(sweep, rank=0).rank == 0


def test_what_broke_is_told_while_the_run_waits_to_go_on(sweep):
    sweep.status("abc1", "REQUEUED", "broke down")
    assert evidence(sweep).cause is None
    sweep.failure("abc1", 0, "Hung", "rank 0 on n1 made no progress for 900 s; see rank0.hang.txt")
    assert str(evidence(sweep).cause) == "rank 0 on n1 made no progress for 900 s; see rank0.hang.txt"


def test_a_node_that_did_not_pass_is_the_cause_and_is_named_as_avoided(sweep, slurm, capsys):
    words = "node n2 did not pass the preflight: writing x: Input/output error"
    sweep.status("abc1", "REQUEUED", f"broke down: rank 1 on n2: NodeFailed: {words}")
    sweep.failure("abc1", 1, "NodeFailed", words)
    sweep.dir.run("abc1").add_attempt_event(event="exclude", node="n2", reason="broke down: oh\x1b[2J")
    slurm.queue(("12", "PENDING"))
    show_logs(str(sweep.dir.run("abc1").path), sweep.dir.path, slurm.env, rank=None, lines=0, follow=False)
    said = capsys.readouterr().err
    assert "rank 1 on n2 failed first" in said and f"cause: {words}; the run is requeued to other nodes" in said
    assert "avoids n2: broke down: oh" in said and "\x1b" not in said


def test_failures_of_an_earlier_start_do_not_count(sweep):
    sweep.failure("abc1", 1, "OSError", "[Errno 28] No space left on device")
    sweep.started("abc1", incarnation="12.r1", time="2026-11-22T04:00:00")
    sweep.status("abc1", "RUNNING")
    assert (evidence(sweep).rank, evidence(sweep).failed, evidence(sweep).cause) == (0, False, None)


@pytest.mark.parametrize(
    ("more", "name"), [("", "killed"), ("slurmstepd: error: Detected 1 oom-kill event(s)\n", "out of memory")]
)
def test_a_rank_that_was_killed_and_left_no_word_is_found_by_what_srun_says(sweep, more, name):
    sweep.status("abc1", "FAILED", "rank 0 lost another rank, which left no word")
    sweep.failure("abc1", 0, "PeerLost", "rank 0 on n1 lost another rank", after_another=True)
    srun = """srun: error: n1: task 0: Exited with exit code 75
srun: launch/slurm: _step_signal: Terminating StepId=12.0
srun: error: n2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=12.0
srun: error: n1: task 0: Exited with exit code 3
"""
    write(sweep.dir.job_logs / "12_0_log.err", more + srun)
    found = evidence(sweep)
    assert (found.rank, found.host, found.failed, found.cause.name) == (1, "n2", True, name)


def test_torn_records_and_none_at_all(sweep):
    sweep.status("abc1", "FAILED", "ValueError: no")
    folder = sweep.dir.run("abc1").path / "attempts" / "12.r0"
    folder.mkdir(parents=True)
    (folder / "rank1.failed.json").write_text('{"rank": 1, "ho')
    assert evidence(sweep).rank == 0


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0.", "out of memory"),
        ("error: data.path=a.csv: there is no such file", "data.path=a.csv: there is no such file"),
        ("/bin/python: No module named launcher.runtime.worker", "something cannot be imported"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_only_the_job_printed(sweep, tmp_path, printed, name, elsewhere):
    folder = tmp_path / "elsewhere" if elsewhere else sweep.dir.job_logs
    if elsewhere:
        sweep.submitted("abc1", job="13", token="t2", logs=str(folder))
    job = "13" if elsewhere else "12"
    sweep.started("abc1", job=job)
    for rank in (0, 1):
        sweep.dir.run("abc1").log(rank).unlink()
    write(folder / f"{job}_0_log.err", printed + "\n")
    sweep.status("abc1", "FAILED")
    found = evidence(sweep)
    assert found.cause.name == name and found.file == folder / f"{job}_0_log.err"


def test_it_says_whose_and_why_on_stderr_and_prints_no_control_characters(sweep, slurm, tmp_path, capsys):
    sweep.status("abc1", "FAILED", "boom")
    sweep.failure("abc1", 1, "MemoryError", "")
    write(sweep.dir.run("abc1").log(1), "a\x1b[31mred\x1b[0m\x07\x1b]0;title\x07\rbar\r\nlast", "a")
    assert show_logs("abc", tmp_path, slurm.env, rank=None, lines=0, follow=False) == 0
    out, err = capsys.readouterr()
    assert out == "rank 1 begins\nared\ufffd\nbar\nlast\n"
    assert "abc1 is FAILED: boom" in err and "rank 1 on n2 failed first" in err and "cause: out of memory" in err
    show_logs("12", tmp_path, slurm.env, rank=0, lines=1, follow=False)
    assert capsys.readouterr().out == "rank 0 begins\n"


def test_no_log_is_the_users_to_know(sweep, slurm, tmp_path):
    with pytest.raises(UserError, match=r"rank 7 has no log \(there are: rank0\.log, rank1\.log\)"):
        show_logs("abc1", tmp_path, slurm.env, rank=7, lines=0, follow=False)
    sweep.run("new")
    with pytest.raises(UserError, match="has no log yet"):
        show_logs("new", tmp_path, slurm.env, rank=None, lines=0, follow=False)


def test_following_ends_with_the_run(sweep, slurm, tmp_path, capsys):
    sweep.status("abc1", "COMPLETED")
    assert show_logs("abc1", tmp_path, slurm.env, rank=None, lines=5, follow=True) == 0
    assert capsys.readouterr().out == "rank 0 begins\n"


def test_a_follower_sees_what_is_appended_cut_short_and_replaced(tmp_path):
    file, follower = tmp_path / "log", Follower(lines=2)
    assert follower.read(file) == []
    write(file, "1\n2\n3\n4\npar")
    assert follower.read(file) == ["3", "4"]
    write(file, "t\n", "a")
    assert follower.read(file) == ["part"] and follower.read(file) == []
    write(file, "new\n")
    assert follower.read(file) == ["new"]
    other = tmp_path / "other"
    write(other, "replaced by a longer one\n")
    other.replace(file)
    assert follower.read(file) == ["replaced by a longer one"]
    write(file, "no end", "a")
    assert follower.read(file) == [] and follower.rest() == ["no end"]


def test_a_character_that_is_written_in_two_parts_is_one(tmp_path):
    file, follower = tmp_path / "log", Follower(lines=0)
    file.write_bytes("ä".encode()[:1])
    assert follower.read(file) == []
    file.write_bytes("ä\n".encode())
    assert follower.read(file) == ["ä"]


@given(st.integers(0, 9), st.integers(0, 2**32))
def test_last_lines_are_the_last_lines(count, seed):
    import tempfile
    from pathlib import Path

    drawn = random.Random(seed)
    wanted = ["x" * drawn.choice([0, 1, 70_000]) for _ in range(drawn.randrange(8))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log"
        write(file, "".join(line + "\n" for line in wanted))
        assert list(last_lines(file, count)) == (wanted[-count:] if count else wanted)


def test_the_tail_of_a_file_that_is_not_there(tmp_path):
    assert tail_of(tmp_path / "none") == "" == tail_of(tmp_path)


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text):
    for line in [printable(text), *lines_of(text)]:
        assert line.replace("\t", "").isprintable()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [("\x1b[1;31mred\x1b[0m", "red"), ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"), ("\x9b2Ja", "a"),
     ("\x1bPq#\x1b\\a", "a"), ("a\tb", "a\tb"), ("\x1b(Bx", "x"), ("\u202eevil", "\ufffdevil"), ("ü漢", "ü漢"),
     ("\x1b", "")],
)  # fmt: skip
def test_escape_sequences(raw, clean):
    assert printable(raw) == clean
