"""Start of `python -m launcher.run --help` against `python -c "import hydra"`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

from launcher.runtime.errors import ExitCode
from sweeps.bench.report import interleaved, ratio, say

NAME = "help"
_HELP = ["-m", "launcher.run", "--help"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--rounds", type=int, default=9, help="starts of each side (9)")


def run(args: argparse.Namespace) -> int:
    """Print the times of both, their ratio, and whether torch was imported."""
    ours, hydra = _starter(_HELP), _starter(["-c", "import hydra"])
    ours(), hydra()
    slow, fast = interleaved(ours, hydra, args.rounds)
    row = {
        "help_ms": 1e3 * statistics.median(slow),
        "import_hydra_ms": 1e3 * statistics.median(fast),
        "times_longer": ratio(slow, fast),
        "torch_imported": imports_torch(),
    }
    say(f"{NAME}: python -m launcher.run --help", [row], args.json)
    return ExitCode.DONE


def imports_torch() -> bool:
    """Whether `launcher.run --help` imports torch."""
    log = subprocess.run(
        [sys.executable, "-X", "importtime", *_HELP], capture_output=True, text=True, check=True
    ).stderr
    return any(line.rpartition("|")[2].strip() == "torch" for line in log.splitlines())


def _starter(arguments: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
