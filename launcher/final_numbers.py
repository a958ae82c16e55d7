"""What a command says of the run that it has trained: a table on a terminal, aligned lines for whatever reads them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from launcher.runtime.job import Outcome
from launcher.runtime.rundir import RunDir

_LONGEST = 32
"""Characters of a value in the table; the summary has all."""


def say_outcome(rundir: RunDir, outcome: Outcome) -> None:
    """Print to stdout how the run ended; of one that is COMPLETED its final numbers, and what else to look at."""
    if outcome.state != "COMPLETED":
        print(f"{outcome.state}: {rundir.path}\ncontinue it with the same command")
        return
    print(f"COMPLETED: {rundir.path}")
    numbers = {name: value for name, value in outcome.summary.items() if value is not None and name != "status"}
    console = Console()
    if console.is_interactive:
        console.print(_table(numbers))
    else:
        for name, value in numbers.items():
            print(f"  {name:<18} {_plain(value)}")
    for file in (rundir.loss_curve, rundir.timing_curve, rundir.metrics):
        if file.exists():
            print(f"  {file.name}")
    if rundir.tensorboard.exists():
        print(f"look at it:  tensorboard --logdir {shlex.quote(str(rundir.path.parent))}")
    if store := (rundir.read(rundir.mlflow) or {}).get("uri"):
        print(f"look at it:  {_server_of(str(store))}")


def _server_of(store: str) -> str:
    """Where the pages of an MLflow store are, or the light way to have them: two processes, not eleven."""
    if store.startswith("http"):
        return store
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 --backend-store-uri {shlex.quote(store)}"
    )


def _table(numbers: Mapping[str, Any]) -> Table:
    table = Table(box=box.ROUNDED, show_header=False, border_style="dim")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value in numbers.items():
        table.add_row(name, Text(_readable(name, value)))
    return table


def _plain(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _readable(name: str, value: Any) -> str:
    """``value`` for people: bytes and large counts by their unit, a share in percent, a long text cut off."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    if name.endswith("_bytes"):
        return decimal(int(value))
    if name == "mfu":
        return f"{value:.1%}"
    if name.startswith("flops_"):
        return f"{value / 1e9:.4g} GFLOP"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"
