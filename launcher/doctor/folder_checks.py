"""The folder that runs are written to: does it keep what we rely on?"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from launcher.doctor.findings import Finding, fail, ok, warn
from launcher.runtime.files import write_json

_SHARED = re.compile(r"nfs\d?|lustre|gpfs|mmfs|beegfs\w*|ceph|cifs|smb3|fuse\..+|wekafs|panfs|orangefs|pvfs2|glusterfs|"
                     r"9p|virtiofs|afs|quobyte|daos|vast\w*")  # fmt: skip
"""Types of file systems that several machines may share (proc(5), /proc/self/mountinfo)."""
_GB = 10**9
_SLOW_SYNC_S = 0.5


def check_folder(folder: Path) -> Iterator[Finding]:
    """Look at where ``folder`` stands, which exists and is the caller's to write in."""
    yield file_system(folder.parent, Path("/proc/self/mountinfo").read_text())
    yield _writing(folder)
    yield _locks(folder)
    stat = os.statvfs(folder)
    yield free_space(stat.f_bavail * stat.f_frsize, stat.f_favail, stat.f_files)


def file_system(folder: Path, mountinfo: str) -> Finding:
    """Whether ``folder`` stands on a file system that other nodes may see."""
    place, best, kind = folder.resolve(), "", "?"
    for line in mountinfo.splitlines():
        words = line.split()
        if "-" not in words[6:]:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
        if place.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, words[words.index("-", 6) + 1]
    text = f"{place} is on {kind} ({best})"
    if _SHARED.fullmatch(kind):
        return ok("file system", text)
    return warn("file system", f"{text}, which looks like this machine's own", "jobs on other nodes must see it too")


def _writing(folder: Path) -> Finding:
    probe = folder / "probe.json"
    try:
        write_json(probe, {"n": 0})
        begun = time.monotonic()
        with probe.open("rb") as before:
            write_json(probe, {"n": 1})
            kept = before.read()
        seconds = time.monotonic() - begun
        now = probe.read_text()
    except OSError as error:
        return fail("writing", f"{folder}: {error.strerror or error}", "choose another folder: --root, launch.root")
    if b"0" not in kept or "1" not in now:
        return fail("writing", "a file that is renamed over another changes who reads that one", "choose another disk")
    text = f"atomic replacement with fsync takes {1000 * seconds:.1f} ms"
    if seconds > _SLOW_SYNC_S:
        return warn("writing", text, "save less often (checkpoint.every_steps)")
    return ok("writing", text)


def _locks(folder: Path) -> Finding:
    try:
        with FileLock(folder / "probe.lock", timeout=5):
            return ok("locks", "flock works")
    except (OSError, NotImplementedError, Timeout) as error:
        return fail("locks", f"flock does not work: {error}", "two trainers of one run need it; mount with flock")


def free_space(free: int, inodes: int, all_inodes: int) -> Finding:
    """Whether there is room: bytes, and files (0 of 0: the file system sets no limit)."""
    text = f"{free / _GB:.1f} GB free" + (f", {inodes} files" if all_inodes else "")
    if free < _GB or (all_inodes and inodes < 1000):
        return fail("free space", text, "make room; a checkpoint would not fit")
    if free < 10 * _GB or (all_inodes and inodes < 100_000):
        return warn("free space", text, "a large sweep may fill it; see launch.dry_run=true for what it writes")
    return ok("free space", text)
