"""Benchmarks: each prints its figures as a table or as JSON; without a name all of them run."""

from __future__ import annotations

import argparse

from launcher.runtime.errors import ExitCode
from sweeps.bench import (
    compare,
    help_start,
    loader,
    member,
    memory,
    pack,
    profiler,
    ranks,
    requeue,
    rerun,
    save,
    step,
    submit,
    trace,
    trackers,
)

_BENCHMARKS = (
    step,
    ranks,
    save,
    loader,
    memory,
    help_start,
    compare,
    submit,
    rerun,
    requeue,
    member,
    pack,
    profiler,
    trace,
    trackers,
)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a sub-command for each benchmark."""
    parser.set_defaults(command=_run_all)
    commands = parser.add_subparsers(metavar="WHAT")
    for benchmark in _BENCHMARKS:
        one = commands.add_parser(benchmark.NAME, help=(benchmark.__doc__ or "").splitlines()[0])
        one.add_argument("--json", action="store_true", help="print JSON")
        benchmark.add_arguments(one)
        one.set_defaults(command=benchmark.run)


def _run_all(args: argparse.Namespace) -> int:
    for benchmark in _BENCHMARKS:
        parser = argparse.ArgumentParser()
        benchmark.add_arguments(parser)
        benchmark.run(parser.parse_args([], argparse.Namespace(json=False)))
    return ExitCode.DONE
