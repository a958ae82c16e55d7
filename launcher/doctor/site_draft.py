"""``launcher doctor --write-site NAME``: a first file for this cluster, of what Slurm says and the test job has seen.

Each value tells where it was taken from. What is not known, or is one of several, stands there commented out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.doctor.slurm_checks import default_partition
from launcher.doctor.trial import Wish
from launcher.runtime.errors import UserError
from launcher.site import site_names
from launcher.sweep_files import user_configs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TYPED_GPU = re.compile(r"\bgpu:([A-Za-z0-9_.-]*[A-Za-z_][A-Za-z0-9_.-]*):\d+")
_HEAD = """\
# {cluster}: drafted by `python -m launcher doctor --write-site {name}`. Chosen by site={name} or LAUNCHER_SITE={name}.
# What is left out is as in conf/site/default.yaml; launcher/schema.py says what each key means.
"""
_BY_HAND = """\
# setup: [module load cuda]  # lines of shell that jobs run first
# env: {NCCL_DEBUG: INFO}  # environment variables of jobs
# secrets: {WANDB_API_KEY: "${oc.env:WANDB_API_KEY}"}  # the same, and in no file of a run
# container: {runtime: apptainer, image: ~/images/train.sif}  # what jobs run in
"""


@dataclass
class Seen:
    """What the doctor was told, for the draft."""

    wish: Wish
    wanted: bool = True
    """Whether there is to be a draft."""
    slurm_conf: str | None = None
    cluster: str = ""
    partitions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    kinds: list[tuple[str, str, str]] = field(default_factory=list)
    """Of nodes: partition, generic resources, features."""
    associations: list[tuple[str, list[str], str]] = field(default_factory=list)
    """Account, qualities of service and the default one."""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """What each rank of the test job found."""


@dataclass(frozen=True)
class _Line:
    key: str
    value: Any
    """None: not known."""
    source: str

    def __str__(self) -> str:
        shown = "" if self.value is None else " " + yaml.safe_dump(self.value, width=1000).split("\n")[0]
        return (
            f"{'# ' if self.value is None else ''}{self.key}:{shown}  # {''.join(filter(str.isprintable, self.source))}"
        )


@dataclass(frozen=True)
class Draft:
    """The file that is to be written."""

    name: str
    path: Path

    @staticmethod
    def of(name: str, env: Mapping[str, str]) -> Draft:
        """For the site ``name``.

        Raises:
            UserError: that is no name, or there is such a site already.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"--write-site {name!r}: should be a plain name (letters, digits, - and _)")
        folder = user_configs(env)
        if folder is None:
            raise UserError("--write-site: this user has no home; set XDG_CONFIG_HOME")
        path = folder / "site" / f"{name}.yaml"
        if path.exists():
            raise UserError(f"{path}: is there already and stays as it is; move it away, or choose another name")
        if name in site_names():
            raise UserError(f"--write-site {name}: there is a site of that name already; choose another one")
        return Draft(name, path)

    def write(self, seen: Seen) -> None:
        """Write it, for its owner alone, and say so on stderr; nothing where Slurm said nothing.

        Raises:
            UserError: it cannot be written.
        """
        if not seen.partitions:
            print(f"{self.path}: not written, as Slurm has told nothing", file=sys.stderr)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it may come to hold secrets
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text_of(self.name, seen))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None
        print(f"wrote {self.path}: read it, then choose it by site={self.name}", file=sys.stderr)


def text_of(name: str, seen: Seen) -> str:
    """The file."""
    head = _HEAD.format(cluster="".join(filter(str.isprintable, seen.cluster)) or "a cluster", name=name)
    return head + "".join(f"{line}\n" for line in _lines(seen)) + _BY_HAND


def _lines(seen: Seen) -> Iterable[_Line]:
    conf = seen.slurm_conf
    if conf:
        yield _Line("slurm_conf", conf, "SLURM_CONF, where this command was typed")
    partition = seen.wish.options.get("partition")
    if partition is not None:
        yield _Line("partition", partition, "as asked for")
    else:
        partition = default_partition(seen.partitions)
        yield _Line("partition", partition, f"scontrol: {_one_of(sorted(seen.partitions), partition, 'the default')}")
    yield from _account_and_qos(seen)
    of_partition = [kind for kind in seen.kinds if partition in (None, kind[0])]
    features = {word for _, _, said in of_partition for word in said.split(",") if word not in ("", "(null)")}
    told = f"features of its nodes: {', '.join(sorted(features))}" if features else "its nodes have no features"
    yield _Line("constraint", seen.wish.options.get("constraint"), f"sinfo: {told}")
    types = sorted({kind for _, gres, _ in of_partition for kind in _TYPED_GPU.findall(gres)})
    any_gpu = any("gpu" in gres for _, gres, _ in of_partition)
    said = _one_of(types, None, "") if types else "GPUs have no types" if any_gpu else "no GPUs"
    yield _Line("gpu_type", types[0] if len(types) == 1 else None, f"sinfo: {said}")
    yield from _of_the_job(seen)


def _account_and_qos(seen: Seen) -> Iterable[_Line]:
    options = seen.wish.options
    accounts = sorted({account for account, _, _ in seen.associations})
    account = options.get("account") or (accounts[0] if len(accounts) == 1 else None)
    told = f"sacctmgr: {_one_of(accounts, None, '')}" if seen.associations else "not known: no accounting"
    yield _Line("account", account, "as asked for" if options.get("account") else told)
    mine = [found for found in seen.associations if account in (None, found[0])]
    names, defaults = sorted({q for _, qos, _ in mine for q in qos}), {default for _, _, default in mine if default}
    default = defaults.pop() if len(defaults) == 1 else None
    told = f"sacctmgr: {_one_of(names, default, 'the default')}" if mine else "not known: no accounting"
    yield _Line("qos", options.get("qos") or default, "as asked for" if options.get("qos") else told)


def _of_the_job(seen: Seen) -> Iterable[_Line]:
    ranks = seen.ranks
    hosts = ", ".join(dict.fromkeys(str(rank["host"]) for rank in ranks))
    versions = {(rank["python"], rank["torch"]) for rank in ranks if "torch" in rank}
    if ranks and len(versions) == 1 and all("torch" in rank for rank in ranks):
        python, torch = versions.pop()
        yield _Line("python", seen.wish.python, f"the test job ran it on {hosts}: Python {python}, torch {torch}")
    else:
        yield _Line("python", None, "not known: no test job has run it on all of its nodes")
    interfaces = {rank.get("interface") for rank in ranks[1:]} - {None, "lo"}
    there = sorted({f"{name} {address}" for rank in ranks for name, address in rank.get("interfaces", {}).items()})
    found = str(interfaces.pop()) if len(interfaces) == 1 else None
    told = "the test job's nodes reach each other by it" if found else "not known; null finds it out"
    yield _Line("interface", found, f"{told}; there are: {', '.join(there)}" if there else told)
    disks = [set(rank.get("disks", [])) for rank in ranks]
    common = [disk for disk in ranks[0].get("disks", []) if all(disk in other for other in disks)] if ranks else []
    scratch = None if not common else f"{common[0]}/$USER" if common[0].startswith("/") else f"${common[0]}"
    told = "can be written on the test job's nodes" if scratch else "not known: a folder on each node's own disk"
    yield _Line("scratch", scratch, told)
    bf16 = {rank["bf16"] for rank in ranks if "bf16" in rank}
    told = "what the test job's GPUs do" if bf16 else "not known: try with --gpus"
    yield _Line("bf16", all(bf16) if bf16 else None, told)


def _one_of(names: list[str], chosen: str | None, why: str) -> str:
    if not names:
        return "there is none"
    if len(names) == 1:
        return f"the only one: {names[0]}"
    return f"{why}; there are: {', '.join(names)}" if chosen else f"one of: {', '.join(names)}"
