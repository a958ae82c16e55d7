"""A copy on the node's own disk: whole or not at all, made once, and never in the way of a run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.runtime import stage as module
from launcher.runtime.stage import stage
from tests.conftest import REPOSITORY
from tests.launcher.runtime.checkpoint.test_writing import may_mount


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of data."""
    folder = tmp_path / "shared" / "data-48px"
    (folder / "part").mkdir(parents=True)
    (folder / "images.u8").write_bytes(os.urandom(300_000))
    (folder / "part" / "ends.i64").write_bytes(b"")
    return folder


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The node's own disk."""
    return tmp_path / "node"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def litter(node: Path) -> list[str]:
    return [path.name for path in node.glob("*/*") if path.name.endswith(".unfinished")]


def test_a_folder_is_copied_once_and_found_again(source, node, caplog):
    caplog.set_level("INFO")
    copy = stage(source, node)
    assert copy.is_relative_to(node) and copy.name == source.name and content(copy) == content(source)
    assert stage(source, node) == copy
    assert [r.message for r in caplog.records] == [f"staging {source} (0.3 MB) in {copy.parent}, once for this node"]
    assert (node / f"seemore-{os.getuid()}").stat().st_mode & 0o077 == 0 and litter(node) == []


def test_a_file_is_copied_under_its_name(source, node):
    copy = stage(source / "images.u8", node)
    assert copy.name == "images.u8" and copy.read_bytes() == (source / "images.u8").read_bytes()


def test_data_that_changed_get_a_copy_of_their_own(source, node):
    before = stage(source, node)
    (source / "images.u8").write_bytes(b"new")
    after = stage(source, node)
    assert after != before and content(after) == content(source) and (before / "images.u8").stat().st_size == 300_000


def _staged(source: Path, node: Path, said: Path) -> None:
    copy = stage(source, node)
    (said / str(os.getpid())).write_text(f"{copy} {(copy / 'images.u8').stat().st_ino}")


def test_of_many_processes_at_once_one_copies(source, node, tmp_path):
    said = tmp_path / "said"
    said.mkdir()
    several = [multiprocessing.get_context("fork").Process(target=_staged, args=(source, node, said)) for _ in range(6)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    assert len(list(said.iterdir())) == 6 and len({path.read_text() for path in said.iterdir()}) == 1


def test_what_a_killed_one_left_and_a_damaged_copy_are_made_anew(source, node):
    copy = stage(source, node)
    half = copy.parent.with_name(f"{copy.parent.name}.unfinished")
    half.mkdir()
    (half / "x").touch()
    os.truncate(copy / "images.u8", 5)
    assert stage(source, node) == copy and content(copy) == content(source) and litter(node) == []


class Stop(Exception):
    pass


@pytest.mark.parametrize("polls", [1, 2, 3])
def test_a_stop_ends_a_copy_and_nothing_is_left(source, node, polls):
    left = iter(range(polls))

    def poll() -> None:
        if next(left, None) is None:
            raise Stop

    with pytest.raises(Stop):
        stage(source, node, poll)
    assert litter(node) == []
    assert content(stage(source, node)) == content(source), "its lock is free"


def test_a_stop_ends_the_wait_for_another(source, node):
    copy = stage(source, node)
    (copy / "images.u8").unlink()
    lock = module.FileLock(copy.parent.parent / f"{copy.parent.name}.lock")
    asked: list[int] = []

    def poll() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Stop

    with lock, pytest.raises(Stop):
        stage(source, node, poll)


def test_a_disk_without_room_is_found_out_before_anything_is_written(source, node, monkeypatch, caplog):
    real = os.statvfs(source)
    full = os.statvfs_result((*real[:3], 10, 10, *real[5:]))
    monkeypatch.setattr(module.os, "statvfs", lambda path: full)
    assert stage(source, node) == source
    assert "is not staged" in caplog.text and "0.3 MB do not fit on that disk); read where it is" in caplog.text
    assert not list(node.glob("*/*/*"))


def test_a_copy_that_reads_back_as_another_is_not_used(source, node, monkeypatch, caplog):
    chunks = module._chunks
    turned = iter(range(10))

    def flipped(descriptor, poll):
        last = next(turned) % 2
        for chunk in chunks(descriptor, poll):
            yield chunk[::-1] if last else chunk

    monkeypatch.setattr(module, "_chunks", flipped)
    assert stage(source, node) == source
    assert "the copy of images.u8 differs from it" in caplog.text and litter(node) == []


def test_a_folder_that_cannot_be_used_is_said(source, node, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert stage(source, tmp_path / "file") == source
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    node.mkdir()
    (node / f"seemore-{os.getuid()}").symlink_to(elsewhere)
    assert stage(source, node) == source
    assert "another user's" in caplog.text and not list(elsewhere.iterdir())


def test_a_write_that_fails_leaves_nothing(source, node, monkeypatch, caplog):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    assert stage(source, node) == source
    assert "No space left on device" in caplog.text and litter(node) == []


_SMALL = """
import os, sys
from pathlib import Path
from launcher.runtime import stage as module
source, node = map(Path, sys.argv[1:])
print(module.stage(source, node) == source)
module._ROOM = 0  # as where another job fills the disk meanwhile
print(module.stage(source, node) == source, [p.name for p in node.glob("*/*") if p.is_dir()])
"""


@pytest.mark.skipif(not may_mount(), reason="no mounting here")
def test_a_real_disk_that_is_full(source, node):
    node.mkdir()
    mount = f'mount -t tmpfs -o size=200k tmpfs "{node}" && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    words += [sys.executable, "-c", _SMALL, str(source), str(node)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert ended.stdout.splitlines() == ["True", "True []"], ended.stderr
    assert ended.stderr.count("is not staged") == 2 and "No space left on device" in ended.stderr
