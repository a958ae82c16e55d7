"""Writing aside and committing by a rename: what is cut off leaves nothing that counts."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from launcher.runtime.checkpoint.manifest import xxh3
from launcher.runtime.checkpoint.writing import as_json, link_or_write, make_aside, remove, write_file
from launcher.runtime.rundir import RunDir
from tests.conftest import REPOSITORY
from tests.launcher.runtime.saving import litter, make_saver, save, state, steps


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def test_a_file_is_written_whole_and_described(tmp_path):
    data = os.urandom(20 << 20)
    entry = write_file(tmp_path / "a", memoryview(data))
    assert (tmp_path / "a").read_bytes() == data
    assert entry == {"name": "a", "bytes": len(data), "xxh3": xxh3(data)}


def test_an_empty_file_and_short_writes(tmp_path, monkeypatch):
    assert write_file(tmp_path / "none", memoryview(b""))["bytes"] == 0
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    write_file(tmp_path / "a", memoryview(b"0123456789"))
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_file_is_synced_before_it_counts(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    write_file(tmp_path / "a.json", as_json({"a": 1}))
    assert synced == [(tmp_path / "a.json").stat().st_size]


def test_what_is_there_with_the_same_content_gets_another_name(tmp_path):
    twin, data = tmp_path / "twin", memoryview(b"weights")
    entry = write_file(twin, data)
    assert link_or_write(tmp_path / "a", data, twin, entry) == entry
    assert (tmp_path / "a").samefile(twin)
    other = link_or_write(tmp_path / "b", memoryview(b"WEIGHTS"), twin, entry)
    assert other["xxh3"] != entry["xxh3"] and (tmp_path / "b").read_bytes() == b"WEIGHTS"
    twin.unlink()
    assert link_or_write(tmp_path / "c", data, twin, entry)["xxh3"] == entry["xxh3"]
    assert (tmp_path / "c").read_bytes() == data and not (tmp_path / "c").samefile(tmp_path / "a")


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", memoryview(b"new"))
    assert (tmp_path / "a").read_bytes() == b"old"


def test_what_crashed_saves_left_goes_before_the_next_one_is_made(rundir):
    final = rundir.checkpoint("step", 1, 1)
    left = rundir.unfinished(final)
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    aside = make_aside(rundir, final, 1)
    assert rundir.list_unfinished() == [aside] and not list(aside.iterdir())
    assert rundir.list_checkpoints("step") == []


def test_a_disk_without_room_is_told_before_anything_is_written(rundir, monkeypatch):
    disk = namedtuple("disk", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda path: disk(100, 10))
    final = rundir.checkpoint("step", 1, 1)
    make_aside(rundir, final, 900)
    with pytest.raises(OSError, match="No space left") as caught:
        make_aside(rundir, final, 1000)
    assert caught.value.errno == errno.ENOSPC


def test_a_checkpoint_is_removed_whole_or_not_at_all(rundir, monkeypatch):
    path = save(make_saver(rundir.path), 1)
    seen = []

    def cut_off(folder):
        seen.append((path.exists(), folder.name))
        raise OSError(errno.EIO, "cut off")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cut off"):
        patch.setattr("launcher.runtime.checkpoint.writing.shutil.rmtree", cut_off)
        remove(rundir, path)
    assert seen[0][0] is False and seen[0][1].startswith(".unfinished-")
    assert rundir.list_checkpoints("step") == []


_FILL = """
import resource, sys
from pathlib import Path
import torch
from tests.launcher.runtime.saving import litter, make_saver, save, state, steps
how, folder = sys.argv[1], Path(sys.argv[2])
saver = make_saver(folder)
save(saver, 1)
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for floats in (51_000, 1_000_000):  # one that is refused at its very end, one in the middle
    save(saver, 2, state(2) | {"w": torch.ones(floats)})
    print(saver.error, saver.failures, steps(folder), litter(folder))
save(saver, 3)
print(saver.failures, steps(folder), litter(folder))
"""


def may_mount() -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("how", "reason"), [("limit", "File too large"), ("full", "No space left on device")])
def test_a_full_disk_is_told_and_the_one_before_stays(tmp_path, how, reason):
    words = [sys.executable, "-c", _FILL, how, str(tmp_path)]
    if how == "full":
        if not may_mount():
            pytest.skip("no mounting here")
        mount = f'mount -t tmpfs -o size=200k tmpfs "{tmp_path}" && exec "$@"'
        words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *words]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert ended.stdout.splitlines() == [f"{reason} 1 [1] set()", f"{reason} 2 [1] set()", "0 [3, 1] set()"], (
        ended.stderr
    )


def test_nothing_but_committed_ones_is_left_by_saves(tmp_path):
    saver = make_saver(tmp_path)
    for step in (1, 2, 3):
        save(saver, step, state(step))
    assert (steps(tmp_path), litter(tmp_path)) == ([3, 2], set())
    assert RunDir(tmp_path).latest.read_text() == Path(RunDir(tmp_path).checkpoint("step", 3, 1)).name


@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + 1, (16 << 20) + 4096, (20 << 20) + 12345])
def test_a_large_file_is_written_past_the_page_cache_byte_for_byte(tmp_path, size):
    memory = mmap.mmap(-1, size)
    memory[:] = np.random.default_rng(size).bytes(size)
    entry = write_file(tmp_path / "large", memoryview(memory))
    assert (tmp_path / "large").read_bytes() == memory[:]
    assert entry == {"name": "large", "bytes": size, "xxh3": xxh3(memory[:])}


def test_memory_that_no_disk_fetches_from_is_copied(tmp_path):
    data = bytearray((8 << 20) + 4096 + 3)
    data[-3:] = b"end"
    assert write_file(tmp_path / "odd", memoryview(data)[3:])["bytes"] == len(data) - 3
    assert (tmp_path / "odd").read_bytes() == bytes(data[3:])


def test_a_file_system_without_it_is_written_as_ever(tmp_path, monkeypatch):
    def refuse(descriptor, command, *value):
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr("launcher.runtime.checkpoint.writing.fcntl.fcntl", refuse)
    write_file(tmp_path / "large", memoryview(bytes(9 << 20)))
    assert (tmp_path / "large").read_bytes() == bytes(9 << 20)
