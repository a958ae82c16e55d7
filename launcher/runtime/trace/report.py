"""A trace's report: as text, as CSV rows, as JSON; and a run's own, written at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import flat
from launcher.runtime.trace.breakdown import Breakdown, break_down
from launcher.runtime.trace.events import read_trace
from launcher.runtime.trace.timeline import lay_out
from launcher.runtime.trace.verdicts import Config, Verdict, judge

HEADER = ("kind", "name", "device", "calls", "ms", "share")
"""Columns of the CSV. ``ms`` is milliseconds a step for a part of a step, else milliseconds in the window."""
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Report:
    """What a trace says."""

    path: Path
    damage: str
    """Why there is no more of the trace; empty: it is whole."""
    verdicts: list[Verdict]
    found: Breakdown

    def text(self, top: int) -> str:
        """For a person: the verdicts, the parts of a step, the ``top`` operators and the ``top`` longest events."""
        return "\n".join(self._lines(top)) + "\n"

    def rows(self, top: int) -> Iterator[tuple[str, str, str, int, float, float]]:
        """Under ``HEADER``: verdicts, parts, all operators, the ``top`` longest events."""
        for verdict in self.verdicts:
            yield "verdict", verdict.kind, "", 0, 0.0, verdict.share
        for part in self.found.parts:
            yield "part", _plain(part.name), "cpu", part.times, part.ms, part.share
            if part.gpu_ms:
                yield "part", _plain(part.name), "gpu", part.times, part.gpu_ms, part.gpu_ms / self.found.step_ms
        for row in self.found.operators:
            yield "operator", _plain(row.name), row.device, row.calls, row.self_ms, row.share
        for name, device, ms, share in self._longest(top):
            yield "event", name, device, 1, ms, share

    def to_json(self, top: int) -> dict[str, Any]:
        """All figures, with the ``top`` operators and longest events."""
        found = {f.name: getattr(self.found, f.name) for f in dataclasses.fields(self.found)}
        return {
            "trace": str(self.path),
            "damage": self.damage,
            "verdicts": [dataclasses.asdict(v) for v in self.verdicts],
            **found,
            "parts": [dataclasses.asdict(p) for p in self.found.parts],
            "operators": [dataclasses.asdict(o) for o in self.found.operators[:top]],
            "longest": [
                {"name": name, "device": device, "ms": ms, "share": share}
                for name, device, ms, share in self._longest(top)
            ],
            "gpu": dataclasses.asdict(self.found.gpu) if self.found.gpu else None,
        }

    def _lines(self, top: int) -> Iterator[str]:
        found, gpu = self.found, self.found.gpu
        steps = f"steps {found.steps[0]} to {found.steps[-1]}" if found.steps else "no steps marked, all of it as one"
        yield f"{self.path.name}: {steps}, {found.step_ms:.2f} ms a step"
        if self.damage:
            yield f"The trace is not whole ({self.damage}): what follows is of the part that can be read."
        yield ""
        yield from (f"{i}. {verdict.words}" for i, verdict in enumerate(self.verdicts, start=1))
        yield ""
        yield f"{'part of a step':<16}{'ms':>10}{'share':>8}" + (f"{'GPU ms':>10}" if gpu else "")
        for part in found.parts:
            if part.ms or part.gpu_ms:
                on_gpu = f"{part.gpu_ms:>10.2f}" if gpu else ""
                yield f"{_short(part.name, 16):<16}{part.ms:>10.2f}{100 * part.share:>6.1f} %{on_gpu}"
        if gpu:
            yield f"GPU busy {100 * gpu.busy:.1f} %, idle {100 * (1 - gpu.busy):.1f} %"
        if found.communication:
            sent, exposed = 100 * found.communication, 100 * found.exposed
            yield f"communication {sent:.1f} %, {exposed:.1f} % not overlapped by computing"
        yield f"waits for a result (.item() and the like): {found.syncs:.1f} a step"
        yield ""
        yield f"{'operator':<{_LONGEST_NAME}}{'calls':>8}{'self ms':>10}{'share':>8}"
        for row in found.operators[:top]:
            yield f"{_short(row.name):<{_LONGEST_NAME}}{row.calls:>8}{row.self_ms:>10.2f}{100 * row.share:>6.1f} %"
        yield ""
        yield f"{'longest events':<{_LONGEST_NAME}}{'ms':>8}"
        yield from (f"{_short(name):<{_LONGEST_NAME}}{ms:>8.2f}" for name, _, ms, _ in self._longest(top))

    def _longest(self, top: int) -> Iterator[tuple[str, str, float, float]]:
        """Name, device, milliseconds and share of the window."""
        whole_us = self.found.step_ms * self.found.n_steps * 1e3 or 1.0
        for event, us in self.found.longest[:top]:
            yield _plain(event.name), "cpu" if event.kind == "cpu_op" else "gpu", us / 1e3, us / whole_us


def explain(path: Path, config: Config | None = None) -> Report:
    """The report of the trace ``path``; ``config`` is that of its run, looked for beside it where None is given.

    Raises:
        UserError: it cannot be read, or is no trace.
    """
    trace = read_trace(path)
    found = break_down(lay_out(trace))
    if found.step_ms <= 0:
        raise UserError(f"{path}: holds no time: all its events are of length 0")
    return Report(path, trace.damage, judge(found, config_beside(path) if config is None else config), found)


def config_beside(path: Path) -> dict[str, Any]:
    """The config of the run that a trace lies in, as ``{"data.workers": 0}``; empty where it lies in none."""
    rundir = RunDir(path.absolute().parent.parent)
    try:
        plan = rundir.read(rundir.plan)
    except UserError:  # the trace can be told without
        plan = None
    if not plan:
        return {}
    execution = dict(plan.get("execution") or {})
    return flat(plan.get("science") or {}) | flat(execution.pop("task", None) or {}) | flat(execution)


def _plain(name: str) -> str:
    """What a trace says is not trusted to leave a terminal alone."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


def _short(name: str, width: int = _LONGEST_NAME) -> str:
    name = _plain(name)
    return name if len(name) < width else name[: width - 2] + "…"
