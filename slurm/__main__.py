"""``python -m slurm``: a disposable, real Slurm cluster on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from slurm import faults
from slurm.cluster import Cluster
from slurm.errors import guarded
from slurm.render import Spec

_DESCRIPTION = """\
A disposable, real Slurm cluster on this machine, private to a folder.

  eval "$(python -m slurm up)"       start it; this shell's sbatch, squeue, … talk to it from now on
  python -m slurm status             nodes, daemons, jobs
  python -m slurm preempt 12         let Slurm preempt a job of partition low
  python -m slurm fail-node n2       kill a node; restore-node brings it back
  python -m slurm down               end everything; no process is left
"""
_DEFAULT_DIR = "~/.cache/seemore/slurm"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parsed = _parser().parse_args(arguments)
    return guarded(lambda: parsed.command(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m slurm", None, _DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=command)
        where = f"the cluster's private folder; several can live side by side (default {_DEFAULT_DIR})"
        one.add_argument("--dir", type=Path, default=Path(_DEFAULT_DIR), help=where)
        return one

    up = add("up", "start it, or what is missing of it; prints the line `export SLURM_CONF=…`", _up)
    helps = {
        "nodes": "nodes, n1 and so on", "cpus": "CPUs that each node claims", "gpus": "GPU slots of each node",
        "max_array_size": "Slurm's MaxArraySize", "grace_s": "seconds from a preemption's warning to SIGTERM",
        "kill_wait_s": "seconds from SIGTERM to SIGKILL",
    }  # fmt: skip
    for name, text in helps.items():
        option = "--" + name.removesuffix("_s").replace("_", "-")
        default = f"{text} (default {getattr(Spec, name)})"
        up.add_argument(option, dest=name, type=int, metavar="N", help=default)
    no_signal = "a preemption begins with SIGTERM, not with the job's own --signal"
    up.add_argument("--no-user-signal", dest="user_signal", action="store_false", default=None, help=no_signal)
    no_requeue = "what is preempted is cancelled: PreemptMode=CANCEL, JobRequeue=0"
    up.add_argument("--no-requeue", dest="requeue", action="store_false", default=None, help=no_requeue)
    up.add_argument("--accounting", action="store_true", default=None, help="with slurmdbd and MariaDB")
    add("down", "end all of its processes and forget its jobs", _down)
    add("status", "nodes, daemons, jobs", _status).add_argument("--json", action="store_true", help="as JSON")
    preempt = add("preempt", "let Slurm preempt a running job of partition low", _preempt)
    preempt.add_argument("job", metavar="JOB", help="a job's id, or 12_3 for an element of an array")
    fail = add("fail-node", "kill a node's slurmd and all that runs there", _fail_node)
    fail.add_argument("--tasks-survive", action="store_true", help="kill slurmd only, as if the network had failed")
    restore = add("restore-node", "start a failed node again and wait until it is idle", _restore_node)
    for one in (fail, restore):
        one.add_argument("node", metavar="NODE", help="a node's name, like n2")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _up(parsed: argparse.Namespace) -> None:
    fields = (field.name for field in dataclasses.fields(Spec))
    given = {name: value for name in fields if (value := getattr(parsed, name)) is not None}
    cluster = Cluster(parsed.dir, Spec(**given) if given else None)
    begun = time.monotonic()
    _say(f"{cluster.up()}; {time.monotonic() - begun:.1f} s")
    print(f"export SLURM_CONF={shlex.quote(str(cluster.slurm_conf))}")


def _down(parsed: argparse.Namespace) -> None:
    _say("it is down" if Cluster(parsed.dir).down() else f"no cluster runs in {parsed.dir}")


def _status(parsed: argparse.Namespace) -> None:
    status = Cluster(parsed.dir).status()
    if parsed.json:
        print(json.dumps(dataclasses.asdict(status), indent=2))
        return
    print(f"{'up' if status.running else 'down'}  {status.dir}")
    for node, state in status.nodes.items():
        print(f"{node:<12}{state}")
    if status.jobs:
        print("jobs        " + ", ".join(f"{count} {state}" for state, count in sorted(status.jobs.items())))
    if status.daemons:
        print("daemons     " + ", ".join(f"{process.node or process.kind} {process.pid}" for process in status.daemons))
        if status.missing:
            print("missing     " + ", ".join(status.missing))


def _preempt(parsed: argparse.Namespace) -> None:
    _say(faults.preempt(Cluster(parsed.dir), parsed.job))


def _fail_node(parsed: argparse.Namespace) -> None:
    _say(faults.fail_node(Cluster(parsed.dir), parsed.node, tasks_survive=parsed.tasks_survive))


def _restore_node(parsed: argparse.Namespace) -> None:
    _say(faults.restore_node(Cluster(parsed.dir), parsed.node))


if __name__ == "__main__":
    sys.exit(main())
