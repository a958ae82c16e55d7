"""``launch.dry_run``: what runs would take on disk, against what is free there."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime.plan import Plan
from launcher.sizes import told
from launcher.submission.footprint import Kind, Need, Space, kinds_of, shared
from launcher.submission.snapshot import Snapshot


@dataclass(frozen=True)
class Room:
    """What is free on a file system."""

    free: Space
    block: int
    """Bytes that a file is rounded up to."""
    counts_files: bool
    """Whether the number of files is limited."""

    @staticmethod
    def at(folder: Path) -> Room:
        """Where ``folder`` stands or would be made."""
        there = next(path for path in (folder, *folder.parents) if path.exists())
        disk = os.statvfs(there)
        free = Space(disk.f_bavail * disk.f_frsize, disk.f_favail)
        return Room(free, disk.f_frsize, disk.f_files > 0)

    def shortage(self, wanted: Space) -> str:
        """What ``wanted`` lacks, in words; empty: it fits."""
        n_bytes = wanted.bytes + wanted.files * self.block // 2
        if n_bytes > self.free.bytes:
            return f"{told(n_bytes)} are needed, {told(self.free.bytes)} are free"
        if self.counts_files and wanted.files > self.free.files:
            return f"{wanted.files:,} files are needed, {self.free.files:,} are free"
        return ""


def show_disk(root: Path, plans: Sequence[Plan], snapshot: Snapshot | None = None, at_once: int | None = None) -> None:
    """Print what ``plans`` would take, a line for each kind of run and one for all; warn on stderr of too little room.

    Args:
        root: the folder of all sweeps.
        snapshot: the code that they would be given; None: they import what is installed.
        at_once: most runs at a time; None: all of them.

    Raises:
        UserError: as ``kind_of``.
    """
    if not plans:
        return
    kinds = kinds_of(plans)
    common = shared(kinds, snapshot)
    print("\n# predicted on disk, where nothing is interrupted; folders count as files:")
    rows = [_row(kind, count) for kind, count in kinds.items()]
    heads = ("runs", "full state", "weights", "at its fullest", "in the end")
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        print("# " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    total = in_all(kinds, common, at_once)
    together = "all at once" if at_once is None or at_once >= len(plans) else f"{at_once} at a time"
    print(f"# in all, {together}: {_told(total.fullest)} at the fullest, {_told(total.end)} in the end")
    print(f"# of these the copy of the code and what all share: {_told(common)}")
    if any(kind.footprint is None for kind in kinds):
        print("# checkpoints are not known, and not counted: the task's config has no footprint()")
    room = Room.at(root)
    files = f", {room.free.files:,} files" if room.counts_files else ""
    print(f"# free in {root}: {told(room.free.bytes)}{files}")
    if lack := room.shortage(total.fullest):
        print(f"warning: the runs will not fit in {root}: {lack}; see checkpoint.*, or launch.root=…", file=sys.stderr)


def in_all(kinds: Mapping[Kind, int], common: Space, at_once: int | None) -> Need:
    """What all runs take together: while they run, with ``at_once`` of each kind at their fullest, and in the end."""
    fullest = end = common
    for kind, count in kinds.items():
        need = kind.need()
        end += need.end * count
        fullest += need.end * count + (need.fullest - need.end) * min(count, at_once or count)
    return Need(fullest, end)


def _row(kind: Kind, count: int) -> tuple[str, ...]:
    need = kind.need()
    state, weights = ("not known", "not known") if kind.footprint is None else map(told, kind.saved_bytes())
    return (f"{count:,}", state, weights, _told(need.fullest), _told(need.end))


def _told(space: Space) -> str:
    return f"{told(space.bytes)} in {space.files:,} files"
