"""``launcher doctor``: is this cluster, and the folder of runs, as we rely on?"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launcher.doctor.findings import FAIL, OK, WARN, Finding, fail, ok, warn
from launcher.doctor.folder_checks import check_folder
from launcher.doctor.site_draft import Draft, Seen
from launcher.doctor.slurm_checks import check_limits, check_partition, check_settings
from launcher.doctor.trial import Wish, try_job
from launcher.manage.terminal import printable
from launcher.runtime.errors import ExitCode, UserError
from launcher.slurm_cli import Slurm, missing_commands

__all__ = ["Wish", "examine"]
_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def examine(
    wish: Wish,
    env: Mapping[str, str],
    slurm_conf: str | None = None,
    *,
    with_job: bool,
    as_json: bool,
    draft: Draft | None = None,
) -> int:
    """Print a line for each thing that was looked at; returns the exit code.

    Args:
        slurm_conf: which cluster, where ``env`` has no SLURM_CONF.
        draft: the site's file that is to be written of what is found.

    Returns:
        DONE, or USER_ERROR where something will not work.
    """
    found: list[Finding] = []
    seen = Seen(wish, draft is not None, env.get("SLURM_CONF") or slurm_conf)
    for finding in _findings(wish, env, seen, with_job):
        found.append(finding)
        if not as_json:
            _say(finding)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    count = {verdict: sum(finding.verdict == verdict for finding in found) for verdict in (OK, WARN, FAIL)}
    print(", ".join(f"{number} {verdict}" for verdict, number in count.items() if number), file=sys.stderr)
    if draft is not None:
        draft.write(seen)
    return ExitCode.USER_ERROR if count[FAIL] else ExitCode.DONE


def _say(finding: Finding) -> None:
    line = printable(" ".join(str(finding).split("\n")))
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        text = Text(line)
        text.stylize(_STYLES[finding.verdict], 0, len(finding.verdict))
        Console(highlight=False, soft_wrap=True).print(text)
    else:
        print(line, flush=True)


def _findings(wish: Wish, env: Mapping[str, str], seen: Seen, with_job: bool) -> Iterator[Finding]:
    slurm = Slurm(env, seen.slurm_conf, patient=False)
    usable = True
    for finding in _of_slurm(slurm, wish, env, seen):
        usable = usable and finding.verdict != FAIL
        yield finding
    with _own_folder(wish.root) as folder:
        if isinstance(folder, Finding):
            yield folder
            return
        yield from check_folder(folder)
        if with_job and usable:
            print(f"a test job of {wish.nodes} nodes; it may wait {wish.patience_s} s …", file=sys.stderr)
            yield from try_job(slurm, wish, folder, seen.ranks)


def _of_slurm(slurm: Slurm, wish: Wish, env: Mapping[str, str], seen: Seen) -> Iterator[Finding]:
    if missing := missing_commands(env):
        there = "log in to a cluster, or try one here: python -m slurm up"
        yield fail("commands", f"not on PATH: {', '.join(missing)}", there)
        return
    try:
        yield ok("commands", f"Slurm {slurm.version()}")
        config = slurm.config()
        yield ok("slurmctld", f"answers: cluster {config.get('ClusterName', '?')}")
        partitions = seen.partitions = slurm.partitions()
        seen.cluster = config.get("ClusterName", "")
        seen.kinds = slurm.node_kinds() if seen.wanted else []
    except UserError as error:
        yield fail("slurmctld", str(error), "ask who runs the cluster")
        return
    asked = wish.options.get("partition")
    yield check_partition(partitions, asked, wish.nodes)
    yield from check_settings(config, partitions, asked)
    if not config.get("AccountingStorageType", "none").endswith("none"):
        try:
            yield check_limits(slurm.submit_limits())
            seen.associations = slurm.associations() if seen.wanted else []
        except UserError as error:
            yield warn("limits", str(error), "could not be read")


@contextmanager
def _own_folder(root: Path) -> Iterator[Path | Finding]:
    """A new folder in ``root``, gone at the end with every parent that was made for it; a Finding where it fails."""
    made: list[Path] = []
    folder = root.expanduser().absolute() / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        try:
            for parent in reversed([folder, *folder.parents]):
                if not parent.exists():
                    parent.mkdir(mode=0o700 if parent == folder else 0o777)
                    made.append(parent)
        except OSError as error:
            yield fail("folder", f"{folder}: {error.strerror or error}", "choose another one: --root, launch.root")
            return
        yield folder
    finally:
        for parent in reversed(made):
            if parent == folder:
                shutil.rmtree(parent, ignore_errors=True)
            elif parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
