"""Benchmarks: each prints its figures as a table or as JSON."""

from __future__ import annotations

import argparse

from sweeps.bench import help_start, loader, memory, step


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a sub-command for each benchmark."""
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for benchmark in (step, loader, memory, help_start):
        one = commands.add_parser(benchmark.NAME, help=(benchmark.__doc__ or "").splitlines()[0])
        one.add_argument("--json", action="store_true", help="print JSON")
        benchmark.add_arguments(one)
        one.set_defaults(command=benchmark.run)
