"""The figures of a trace: time by part of a step and by operator, what a GPU did, what was waited for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.runtime.trace.events import Event
from launcher.runtime.trace.intervals import common, holds, total, union, without
from launcher.runtime.trace.timeline import PHASES, Timeline, is_communication, self_times

COMPUTE = ("forward", "backward", "optimizer", "other", "idle")
"""Parts in which the host asks for what is to be computed, Python between them included."""
_WORTH_US = 30.0
"""An operator that takes less on a CPU is taken for overhead: to call it costs about as much as what it computes,
recorded as it is."""
_FEW = 25
"""Operators between two waits for a result: with no more than these the host can never run ahead of a GPU."""


@dataclass(frozen=True)
class Part:
    """A part of a step."""

    name: str
    ms: float
    """Milliseconds a step on the thread that trains."""
    share: float
    """Of the step."""
    gpu_ms: float
    """Milliseconds a step that a GPU computes what this part has asked for; 0 without one."""
    times: int
    """How often it stands in the window."""


@dataclass(frozen=True)
class Operator:
    """All calls of one operator, or of one kernel."""

    name: str
    device: str
    """cpu or gpu."""
    calls: int
    self_ms: float
    """Milliseconds in the window, without those that it called."""
    share: float
    """Of the window."""


@dataclass(frozen=True)
class Gpu:
    """What the GPU did; shares of the window."""

    busy: float
    """At least one kernel or copy ran."""
    waiting: dict[str, float]
    """No kernel ran, by the part that the host was in."""
    after_sync: float
    """No kernel ran, because the host had just waited for a result and had nothing queued."""
    kernel_us: float
    """Mean length of a kernel, microseconds."""


@dataclass(frozen=True)
class Breakdown:
    """A trace in figures. Shares are of the window, from 0 to 1."""

    steps: list[int]
    n_steps: int
    step_ms: float
    """Milliseconds a step, mean."""
    parts: list[Part]
    named: bool
    """Whether the training loop named its parts."""
    operators: list[Operator]
    """Most self time first."""
    longest: list[tuple[Event, float]]
    """Operators and kernels by their own self time in microseconds, the longest first; at most a thousand."""
    gpu: Gpu | None
    communication: float
    """Share of the time in which something was being sent."""
    exposed: float
    """That part of it in which nothing was computed."""
    overhead: float
    """Share in which calling operators took longer than computing: Python between them, and short ones (CPU only)."""
    op_us: float
    """Mean self time of an operator, microseconds."""
    syncs: float
    """Waits for a result in forward, backward and optimizer, a step."""
    sync_share: float
    """Share of the window in which they come so close that the host cannot run ahead."""

    def part(self, name: str) -> Part:
        """The part ``name``; of no length where there is none."""
        return next((part for part in self.parts if part.name == name), Part(name, 0.0, 0.0, 0.0, 0))


def break_down(timeline: Timeline) -> Breakdown:
    """The figures of ``timeline``."""
    length = timeline.length or 1.0
    timed = self_times(timeline.operators)
    kernels = timeline.kernels
    sending, exposed = _communication(timeline)
    syncs, close = _syncs(timeline, timed)
    own = [(e, us) for e, us in timed if e.thread == timeline.thread]
    longest = sorted([*timed, *((k, k.length) for k in kernels)], key=lambda pair: -pair[1])[:1000]
    return Breakdown(
        steps=timeline.steps,
        n_steps=timeline.n_steps,
        step_ms=length / timeline.n_steps / 1e3,
        parts=_parts(timeline),
        named=timeline.named,
        operators=_operators(timed, kernels, length),
        longest=longest,
        gpu=_gpu(timeline) if kernels else None,
        communication=sending / length,
        exposed=exposed / length,
        overhead=0.0 if kernels else _overhead(timeline, own) / length,
        op_us=sum(us for _, us in own) / max(len(own), 1),
        syncs=syncs / timeline.n_steps,
        sync_share=close / length,
    )


def _parts(timeline: Timeline) -> list[Part]:
    asked: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    launched = _launch_times(timeline)
    for kernel in timeline.kernels:
        moment = launched.get(kernel.correlation, kernel.start)
        name = next((n for n, spans in timeline.phases.items() if holds(spans, moment)), "other")
        asked["communication" if is_communication(kernel) else name].append((kernel.start, kernel.end))
    per_step = 1e3 * timeline.n_steps
    order = [*PHASES, *sorted(set(timeline.phases) - {*PHASES, "other", "idle"}), "other", "idle"]
    return [
        Part(
            name,
            total(timeline.phases.get(name, [])) / per_step,
            total(timeline.phases.get(name, [])) / (timeline.length or 1.0),
            total(union(asked[name])) / per_step,
            timeline.counts.get(name, 0),
        )
        for name in order
    ]


def _launch_times(timeline: Timeline) -> dict[int, float]:
    """When each kernel was asked for."""
    return {e.correlation: e.start for e in timeline.launches if e.correlation >= 0}


def _operators(timed: Sequence[tuple[Event, float]], kernels: Sequence[Event], length: float) -> list[Operator]:
    sums: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for device, events in (("cpu", timed), ("gpu", [(k, k.length) for k in kernels])):
        for event, us in events:
            one = sums[event.name, device]
            one[0] += 1
            one[1] += us
    rows = [Operator(name, device, int(n), us / 1e3, us / length) for (name, device), (n, us) in sums.items()]
    return sorted(rows, key=lambda row: (-row.self_ms, row.name))


def _communication(timeline: Timeline) -> tuple[float, float]:
    """Microseconds in which something was being sent, and in which nothing was computed meanwhile."""
    if timeline.kernels:
        sending = union((k.start, k.end) for k in timeline.kernels if is_communication(k))
        computing = union((k.start, k.end) for k in timeline.kernels if not is_communication(k))
        return total(sending), total(without(sending, computing))
    waited = timeline.phases["communication"]
    return total(waited), total(waited)


def _gpu(timeline: Timeline) -> Gpu:
    length, window = timeline.length or 1.0, [timeline.window]
    busy = common(union((k.start, k.end) for k in timeline.kernels), window)
    computing = [k for k in timeline.kernels if k.kind == "kernel"]  # a copy to the GPU is part of what it waits for
    gaps = without(window, union((k.start, k.end) for k in computing))
    ends = sorted(e.end for e in timeline.syncs)
    # The host waited until the GPU was done, and only then went on: the wait ends where nothing runs.
    dry = [gap for gap in gaps if bisect_right(ends, gap[1]) > bisect_left(ends, gap[0])]
    asked_for = union(part for name in COMPUTE for part in timeline.phases.get(name, []))
    return Gpu(
        busy=total(busy) / length,
        waiting={name: total(common(gaps, spans)) / length for name, spans in timeline.phases.items()},
        after_sync=total(common(dry, asked_for)) / length,
        kernel_us=sum(k.length for k in computing) / max(len(computing), 1),
    )


def _overhead(timeline: Timeline, own: Sequence[tuple[Event, float]]) -> float:
    """Microseconds of the parts that compute in which no operator that is worth its call was computing."""
    computing = union(part for name in COMPUTE for part in timeline.phases.get(name, []))
    worth = sum(us for event, us in own if us >= _WORTH_US and holds(computing, event.start))
    return max(total(computing) - worth, 0.0)


def _syncs(timeline: Timeline, timed: Sequence[tuple[Event, float]]) -> tuple[int, float]:
    """How many waits there are in the parts that compute; microseconds between those that come close."""
    computing = union(part for name in ("forward", "backward", "other") for part in timeline.phases.get(name, []))
    waits = [e for e in timeline.syncs if e.thread == timeline.thread and holds(computing, e.start)]
    places = [e.start for e, us in timed if e.thread == timeline.thread and us > 0]
    close = 0.0
    place = 0
    before, count_before = None, 0
    for wait in waits:
        while place < len(places) and places[place] < wait.start:
            place += 1
        if before is not None and place - count_before <= _FEW:
            close += total(common([(before, wait.end)], computing))
        before, count_before = wait.end, place
    return len(waits), close
