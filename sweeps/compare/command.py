"""``python -m sweeps compare``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from launcher.runtime.errors import ExitCode
from sweeps.compare.files import as_csv, as_json, check_writable, write_file
from sweeps.compare.metric import choose
from sweeps.compare.page import render
from sweeps.compare.picture import draw
from sweeps.compare.reading import read_runs
from sweeps.compare.report import Report, compare
from sweeps.compare.table import lines

_TOP = 20


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the options of the command."""
    parser.add_argument("folder", nargs="+", type=Path, help="a run's folder, a sweep's, or a root of sweeps")
    parser.add_argument(
        "--metric", metavar="NAME",
        help="a number of summary.json, or a curve of metrics.csv: val/loss (its last value), val/loss:best\n"
        "(default: the sweep's own; else best_val_loss, or train_loss where nothing is validated)",
    )  # fmt: skip
    ways = ("min", "max", "minimize", "maximize")
    parser.add_argument("--direction", choices=ways, help="which way is better (the sweep's own; else min)")
    parser.add_argument("--runs", action="store_true", help="a line for each run, not one for all seeds of a setting")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--top", type=_count, default=_TOP, metavar="N", help=f"lines of each table ({_TOP})")
    shown.add_argument("--all", action="store_true", help="all lines")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all runs and all settings that differ")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves, a PNG")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page to explore and to pass on")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print, write what was asked for.

    Raises:
        UserError: no run, no such metric, or a file that cannot be written.
    """
    wanted = {"--csv": args.csv, "--plot": args.plot, "--html": args.html}
    for option, path in wanted.items():
        if path is not None:
            check_writable(option, path)
    found = read_runs(args.folder)
    report = compare(found, choose(args.metric, args.direction, found.runs, found.sweeps))
    if args.json:
        print(json.dumps(as_json(report), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(report, None if args.all else args.top, runs=args.runs)))
    sys.stdout.flush()
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for option, path in wanted.items():
        if path is not None:
            write_file(option, path, _content(option, report))
            print(f"wrote {path}", file=sys.stderr)
    return ExitCode.DONE


def _content(option: str, report: Report) -> bytes:
    return {"--csv": as_csv, "--plot": draw, "--html": render}[option](report)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: should be at least 1")
    return number
