"""``python -m launcher``: seeing and managing runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launcher.runtime.errors import guarded

_DESCRIPTION = """\
See and manage runs; python -m launcher.run starts them.

  python -m launcher status runs/demo          one row a run: state, step, loss, why it waits
  python -m launcher status --advise           why runs wait, and which shape would start sooner
  python -m launcher logs 12_3                 the log of the rank that failed first, and why it did
  python -m launcher cancel runs/demo          end all of its jobs
  python -m launcher resume 1537f0             go on with a run from its last checkpoint, the way it was launched
  python -m launcher resume 1537f0 trainer.max_steps=9000    a new run, its child, that begins from its state
  python -m launcher retry runs/demo           go on with what failed or stopped of it
  python -m launcher curves runs/demo          draw the curves of runs that have none, as packed ones
  python -m launcher clean runs/demo           what of it is not needed any more; --yes removes it
  python -m launcher sync runs/demo            give MLflow and W&B what they missed of it
  python -m launcher drill 1537f0              interrupt a short copy of it: does it come back exactly, and how soon
  python -m launcher doctor                    does this cluster do what we rely on?

RUN is a run's folder (runs/<sweep>/<run_id>), its id or the first letters of it, or a job's id like 12 or 12_3.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parsed = _parser().parse_args(arguments)
    return guarded(lambda: parsed.command(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m launcher", None, _DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="one row a run")
    folder = "a sweep's folder, a root of sweeps (default: runs), or one run's"
    status.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help=folder)
    status.add_argument("--watch", action="store_true", help="draw it anew until nothing changes any more, or Ctrl-C")
    status.add_argument("--json", action="store_true", help="print JSON")
    advise = "of runs that wait: why, and which shape would start sooner (asks Slurm, changes nothing)"
    status.add_argument("--advise", action="store_true", help=advise)
    status.set_defaults(command=_status)

    logs = commands.add_parser("logs", help="what a run's ranks said, first the one that failed first")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run is over, or Ctrl-C")
    logs.add_argument("--rank", type=_count, metavar="N", help="this rank's log")
    logs.add_argument("-n", "--lines", type=_count, default=200, metavar="N", help="last lines (200); 0: all")
    logs.set_defaults(command=_logs)

    cancel = commands.add_parser("cancel", help="end the jobs of runs")
    cancel.add_argument("targets", nargs="+", metavar="TARGET", help="a sweep's folder, or RUN")
    cancel.add_argument("--dry-run", action="store_true", help="only say what would be cancelled")
    grace = "seconds that running ones have to save before (60); 0: none"
    cancel.add_argument("--grace", type=_count, default=60, metavar="S", help=grace)
    cancel.set_defaults(command=_cancel)

    resume = commands.add_parser("resume", help="go on with runs from their last checkpoints")
    words = "RUN, and after exactly one RUN overrides: what they make of it, begun from its state"
    resume.add_argument("words", nargs="+", metavar="RUN|KEY=VALUE", help=words)
    resume.set_defaults(command=_resume)

    retry = commands.add_parser("retry", help="go on with what failed or stopped of sweeps")
    retry.add_argument("targets", nargs="+", metavar="TARGET", help="a sweep's folder, or RUN")
    retry.add_argument("--dry-run", action="store_true", help="only say what would be retried")
    retry.set_defaults(command=_retry)

    curves = commands.add_parser("curves", help="draw loss and timing curves of runs that have none")
    curves.add_argument("targets", nargs="+", metavar="TARGET", help="a sweep's folder, a root of sweeps, or RUN")
    curves.set_defaults(command=_curves)

    _add_clean(commands.add_parser("clean", help="remove what ended runs do not need; first it says what"))

    sync = commands.add_parser("sync", help="give MLflow and W&B what they missed of runs")
    sync.add_argument("targets", nargs="+", metavar="TARGET", help="a sweep's folder, a root of sweeps, or RUN")
    sync.add_argument("--mlflow-uri", metavar="URI", help="this store of MLflow, whatever the runs were planned with")
    sync.add_argument("--wandb", action="store_true", help="run `wandb sync` too, not only say how")
    sync.set_defaults(command=_sync)

    _add_drill(commands.add_parser("drill", help="interrupt a short copy of a run: does it come back, bit for bit"))
    _add_doctor(commands.add_parser("doctor", help="check Slurm's settings, the shared folder and a test job"))
    return parser


def _add_clean(clean: argparse.ArgumentParser) -> None:
    clean.add_argument("targets", nargs="+", metavar="DIR", help="a sweep's folder, a root of sweeps, or RUN")
    which = clean.add_mutually_exclusive_group()
    best = "of checkpoints keep best and final weights alone; of runs that are not COMPLETED the newest full state too"
    which.add_argument("--keep-best", dest="keep", action="store_const", const="best", default="all", help=best)
    last = "keep best and final weights and the newest full state"
    which.add_argument("--keep-last", dest="keep", action="store_const", const="last", help=last)
    clean.add_argument("--traces", action="store_true", help="remove what profilers recorded, too")
    clean.add_argument("--yes", action="store_true", help="remove it; without this nothing is changed")
    clean.add_argument("--json", action="store_true", help="print JSON")
    clean.set_defaults(command=_clean)


def _add_drill(drill: argparse.ArgumentParser) -> None:
    drill.add_argument("run", metavar="RUN")
    drill.add_argument("--steps", type=_positive, default=12, metavar="N", help="steps of the copies (12)")
    drill.add_argument("--patience", type=_positive, default=600, metavar="S", help="wait so long in the queue (600)")
    drill.add_argument("--keep", action="store_true", help="leave the folder of the copies")
    drill.add_argument("--json", action="store_true", help="print JSON")
    drill.set_defaults(command=_drill)


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (default: runs)")
    doctor.add_argument("--nodes", type=_positive, default=2, metavar="N", help="nodes of the test job (2)")
    doctor.add_argument("--gpus", type=_count, default=0, metavar="N", help="GPUs on each of them, tried with NCCL (0)")
    for name in ("partition", "account", "qos", "constraint"):
        doctor.add_argument(f"--{name}", metavar=name[0].upper(), help=f"{name} of the test job")
    doctor.add_argument("--interface", metavar="NAME", help="network interface of the all-reduce (default: torch's)")
    doctor.add_argument("--python", metavar="PATH", help="Python on the nodes (this one)")
    doctor.add_argument("--site", metavar="NAME", help="take these from a site, as launcher.run does (LAUNCHER_SITE)")
    doctor.add_argument("--patience", type=_positive, default=120, metavar="S", help="wait so long for its start (120)")
    doctor.add_argument("--write-site", metavar="NAME", help="draft ~/.config/seemore/site/NAME.yaml of what is found")
    doctor.add_argument("--no-job", action="store_true", help="look at settings and the folder only")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _count(text: str) -> int:
    """A whole number from 0."""
    if not 0 <= int(text) < 2**31:
        raise ValueError
    return int(text)


def _positive(text: str) -> int:
    """A whole number above 0."""
    if not 0 < int(text) < 2**31:
        raise ValueError
    return int(text)


def _status(args: argparse.Namespace) -> int:
    from launcher.manage.status import show_status

    return show_status(args.folder, os.environ, watch=args.watch, as_json=args.json, with_advice=args.advise)


def _logs(args: argparse.Namespace) -> int:
    from launcher.manage.logs import show_logs

    return show_logs(args.run, Path.cwd(), os.environ, rank=args.rank, lines=args.lines, follow=args.follow)


def _cancel(args: argparse.Namespace) -> int:
    from launcher.manage.cancel import cancel

    return cancel(args.targets, Path.cwd(), os.environ, grace_s=args.grace, dry_run=args.dry_run)


def _resume(args: argparse.Namespace) -> int:
    from launcher.manage.beyond import resume

    return resume(args.words, Path.cwd(), os.environ)


def _retry(args: argparse.Namespace) -> int:
    from launcher.manage.again import retry

    return retry(args.targets, Path.cwd(), os.environ, dry_run=args.dry_run)


def _curves(args: argparse.Namespace) -> int:
    from launcher.manage.curves import curves

    return curves(args.targets, Path.cwd())


def _sync(args: argparse.Namespace) -> int:
    from launcher.manage.sync import sync
    from launcher.runtime.world import set_defaults

    set_defaults(os.environ)
    return sync(args.targets, Path.cwd(), uri=args.mlflow_uri, send=args.wandb)


def _clean(args: argparse.Namespace) -> int:
    from launcher.manage.clean import Wish, clean

    wish = Wish(keep=args.keep, traces=args.traces, really=args.yes)
    return clean(args.targets, Path.cwd(), os.environ, wish, as_json=args.json)


def _drill(args: argparse.Namespace) -> int:
    from launcher.drill.command import drill

    return drill(
        args.run, Path.cwd(), os.environ,
        steps=args.steps, patience_s=args.patience, keep=args.keep, as_json=args.json,
    )  # fmt: skip


def _doctor(args: argparse.Namespace) -> int:
    from launcher.doctor.examine import Wish, examine
    from launcher.doctor.site_draft import Draft
    from launcher.site import compose_site
    from launcher.submission.variables import export_lines

    draft = Draft.of(args.write_site, os.environ) if args.write_site is not None else None
    site = compose_site(args.site)
    options = {
        name: getattr(args, name) or getattr(site, name) for name in ("partition", "account", "qos", "constraint")
    }
    wish = Wish(
        root=args.root, nodes=args.nodes, gpus=args.gpus, python=args.python or site.python or sys.executable,
        patience_s=args.patience, interface=args.interface or site.interface,
        options={name: value for name, value in options.items() if value is not None}, gpu_type=site.gpu_type,
        setup=(*export_lines(site), *site.setup),
    )  # fmt: skip
    slurm_conf = site.slurm_conf and str(Path(site.slurm_conf).expanduser())
    return examine(wish, os.environ, slurm_conf, with_job=not args.no_job, as_json=args.json, draft=draft)


if __name__ == "__main__":
    sys.exit(main())
