"""The tool that kills after the n-th change to files: counts exactly, kills where it says, tells what went wrong."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import killed_at
from tests.killed_at import begin, in_fork, names, points, run_killed, why_not


@pytest.fixture(autouse=True)
def traced():
    if reason := why_not():
        pytest.skip(reason)


def tree(folder):
    """What a reader sees: files with their content, folders with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


def descriptors():
    """What this process has open."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def emptied(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# Counting


def test_a_known_sequence_is_counted_exactly(tmp_path):
    def action():
        (tmp_path / "set-up").write_text("not counted")
        begin()
        (tmp_path / "a").mkdir()
        file = os.open(tmp_path / "a" / "x", os.O_CREAT | os.O_WRONLY)
        os.write(file, b"12")
        os.pwrite(file, b"3", 2)
        os.writev(file, [b"4", b"5"])
        os.ftruncate(file, 3)
        os.fdatasync(file)
        os.fsync(file)
        os.fchmod(file, 0o600)
        os.close(file)
        (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
        os.link(tmp_path / "a" / "y", tmp_path / "a" / "z")
        (tmp_path / "a" / "s").symlink_to("z")
        os.utime(tmp_path / "a" / "y", (1, 1))
        (tmp_path / "a" / "y").chmod(0o644)
        folder = os.open(tmp_path / "a", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
        for name in "syz":
            (tmp_path / "a" / name).unlink()
        (tmp_path / "a").rmdir()

    seen = [SAME.get(name, name.removesuffix("at")) for name in names(action)]
    assert " ".join(seen) == (
        "mkdir open write pwrite64 writev ftruncate fdatasync fsync fchmod close rename link symlink utimens chmod "
        "fsync unlink unlink unlink unlink"
    )


SAME = {"renameat2": "rename", "fchmodat": "chmod", "fchmodat2": "chmod", "rmdir": "unlink"}
"""What one C library calls so and another otherwise, as it does on aarch64."""


def test_what_changes_no_file_is_not_counted(tmp_path):
    (tmp_path / "there").write_text("text")

    def action():
        begin()
        (tmp_path / "there").read_text()
        with (tmp_path / "there").open("r+") as file, pytest.raises(FileNotFoundError):
            assert file.read() == "text"
            (tmp_path / "missing").unlink()
        assert len(list(tmp_path.iterdir())) == 1
        reader, writer = os.pipe()
        os.write(writer, b"x")
        os.read(reader, 1)
        os.write(1, b"said to standard output\n")
        one, other = socket.socketpair()
        one.sendall(b"x")
        other.recv(1)
        thread = threading.Thread(target=bytearray, args=(1 << 22,))
        thread.start()
        thread.join()
        subprocess.run(["true"], check=True)

    assert names(action) == ["close"]  # of the file that was open for writing


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace to compare with")
def test_strace_counts_the_same(tmp_path):
    steps = "os.mkdir('a'); shutil.copytree('a', 'b'); os.rename('b', 'c')"
    code = f"import os, shutil; os.chdir({str(tmp_path)!r}); {steps}"
    calls = "mkdir,rename,chmod,utimensat,unlink,rmdir"
    words = ["strace", "-f", "-o", tmp_path / "log", "-e", f"trace={calls}", sys.executable, "-SEBc", code]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("strace is not permitted")
    theirs = [line.split()[1].partition("(")[0] for line in (tmp_path / "log").read_text().splitlines()]
    theirs = [name for name in theirs if name in calls.split(",")]
    for folder in ("a", "c"):
        (tmp_path / folder).rmdir()

    def action():
        begin()
        exec(code)

    assert names(action) == theirs != []


# Killing

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["write", "move", "remove", "folder"]), st.sampled_from("abc"), st.sampled_from("abc")),
    max_size=6,
)


def operate(folder, operation, one, other):
    """One change that is one system call, where it is possible."""
    if operation == "write" and (folder / one).is_file():
        file = os.open(folder / one, os.O_WRONLY | os.O_APPEND)
        os.write(file, other.encode())
        os.close(file)
    elif operation == "write" and not (folder / one).exists():
        os.close(os.open(folder / one, os.O_CREAT | os.O_WRONLY))
    elif operation == "move" and (folder / one).is_file() and not (folder / other).is_dir():
        (folder / one).replace(folder / other)
    elif operation == "remove" and (folder / one).is_file():
        (folder / one).unlink()
    elif operation == "folder" and not (folder / one).exists():
        (folder / one).mkdir()


@settings(max_examples=25)
@given(OPERATIONS)
def test_what_is_left_is_what_the_first_n_calls_made(tmp_path_factory, operations):
    """The states seen after 1, 2, 3 … calls are those of the action, each in its turn, none left out."""
    root = tmp_path_factory.mktemp("law")
    states = [tree(emptied(root / "model"))]
    for operation in operations:
        operate(root / "model", *operation)
        if tree(root / "model") != states[-1]:
            states.append(tree(root / "model"))

    def action():
        begin()
        for operation in operations:
            operate(root / "real", *operation)

    emptied(root / "real")
    total, seen = points(action), [{}]
    for after in range(1, total + 1):
        emptied(root / "real")
        assert run_killed(action, after) is None
        if tree(root / "real") != seen[-1]:
            seen.append(tree(root / "real"))
    assert seen == states
    emptied(root / "real")
    assert run_killed(action, total + 1) == total
    assert tree(root / "real") == states[-1]


def test_it_is_killed_right_after_the_call(tmp_path):
    def action():
        begin()
        file = os.open(folder / "aside", os.O_CREAT | os.O_WRONLY)
        os.write(file, b"new")
        os.fsync(file)
        os.close(file)
        (folder / "aside").replace(folder / "file")
        (folder / "last").mkdir()

    def left(after):
        emptied(folder)
        (folder / "file").write_bytes(b"old")
        assert run_killed(action, after) is None
        return tree(folder)

    folder = tmp_path / "folder"
    assert left(1) == {"file": b"old", "aside": b""}
    assert [left(n) for n in (2, 3, 4)] == [{"file": b"old", "aside": b"new"}] * 3
    assert left(5) == {"file": b"new"}
    assert left(6) == {"file": b"new", "last": None}


def test_no_point_before_the_first():
    with pytest.raises(ValueError, match="the first call is 1"):
        run_killed(begin, 0)


# Threads


def test_what_threads_do_is_counted_and_a_kill_in_one_takes_all(tmp_path):
    folder = tmp_path / "folder"

    def action():
        go = threading.Event()
        thread = threading.Thread(target=lambda: go.wait() and written("thread"))
        thread.start()  # before begin(): it is traced all the same
        begin()
        written("main")
        go.set()
        thread.join()
        written("end")

    def written(name):
        (folder / name).write_text(name)

    emptied(folder)
    assert names(action) == ["openat", "write", "close"] * 3
    left = []
    for after in range(1, 10):
        emptied(folder)
        assert run_killed(action, after) is None
        left.append("".join(sorted(v.decode() or "-" for v in tree(folder).values())))
    assert left == [
        "-", "main", "main", "-main", "mainthread", "mainthread", "-mainthread", "endmainthread", "endmainthread"
    ]  # fmt: skip


def test_many_threads_at_once(tmp_path):
    def action():
        begin()
        threads = [threading.Thread(target=(tmp_path / str(i)).write_text, args=("x",)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(names(action)) == ["close"] * 20 + ["openat"] * 20 + ["write"] * 20
    for after in (1, 30, 60):
        assert run_killed(action, after) is None


# Signals


def test_signals_are_passed_on(tmp_path):
    def action():
        signal.signal(signal.SIGUSR1, lambda *_: (tmp_path / "handled").mkdir())
        begin()
        os.kill(os.getpid(), signal.SIGUSR1)
        (tmp_path / "after").mkdir()

    assert len(names(action)) == 2
    assert set(tree(tmp_path)) == {"handled", "after"}


def test_a_stopped_process_stays_stopped_until_it_is_continued(tmp_path, monkeypatch):
    stopped = []

    def watched(request, thread, *rest):
        answer = killed_at_ptrace(request, thread, *rest)
        if request == killed_at._LISTEN:  # it lies still now
            stopped.append((tmp_path / "after").exists())
            os.kill(thread, signal.SIGCONT)
        return answer

    def action():
        begin()
        os.kill(os.getpid(), signal.SIGSTOP)
        (tmp_path / "after").mkdir()

    killed_at_ptrace = killed_at._ptrace
    monkeypatch.setattr(killed_at, "_ptrace", watched)
    assert points(action) == 1
    assert stopped == [False]


# What went wrong


@pytest.mark.parametrize("after", [2, 3, 100])
def test_an_action_that_raises_is_told_with_its_traceback(tmp_path, after):
    def action():
        begin()
        (tmp_path / str(after)).mkdir()
        raise ValueError("the disk is on fire")

    with pytest.raises(RuntimeError, match=r"after 1 calls \(mkdir\w*\) the action ended with 1\n(.|\n)*is on fire"):
        run_killed(action, after)


def test_a_traceback_of_any_size_is_told():
    def action():
        begin()
        raise ValueError("x" * 300_000)

    with pytest.raises(RuntimeError, match=r"x{300000}"):
        points(action)


def test_an_action_that_dies_or_leaves_is_not_taken_for_a_kill():
    def dies():
        begin()
        os.kill(os.getpid(), signal.SIGKILL)

    def leaves():
        begin()
        os._exit(3)

    with pytest.raises(RuntimeError, match="died of SIGKILL"):
        run_killed(dies, 1)
    with pytest.raises(RuntimeError, match="ended with 3"):
        run_killed(leaves, 1)


def test_an_action_that_is_stuck_is_ended(monkeypatch):
    def stuck():
        begin()
        os.kill(os.getpid(), signal.SIGALRM)  # as the alarm would
        signal.pause()

    with pytest.raises(RuntimeError, match="died of SIGALRM: it was stuck"):
        run_killed(stuck, 1)


def test_an_action_without_begin_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="never called begin"):
        run_killed((tmp_path / "a").mkdir, 1)


def test_a_machine_that_cannot_trace_says_why(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert why_not.__wrapped__() == "ptrace: no table of system calls for riscv64"


def test_no_process_is_left_behind(tmp_path):
    def many():
        run_killed(action, 1)
        run_killed(action, 9)
        with pytest.raises(RuntimeError):
            run_killed(action, 10)  # the folder is there: mkdir raises
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        return descriptors()

    def action():
        begin()
        (tmp_path / str(len(tree(tmp_path)) % 2)).mkdir()

    assert in_fork(many) == in_fork(descriptors)


def test_a_fork_answers_or_tells_why_it_does_not():
    assert in_fork(lambda: {"pid": 1}) == {"pid": 1}
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        in_fork(lambda: 1 / 0)
