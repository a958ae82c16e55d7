"""A trace put in order: its steps, the parts of a step on the thread that trains, operators, and what a GPU did."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.runtime.trace.events import PHASE, STEP, Event, Trace
from launcher.runtime.trace.intervals import Interval, Intervals, common, union, without

PHASES = ("data", "forward", "backward", "optimizer", "communication", "validation", "checkpoint")
"""Parts of a step that we name, as they are shown. What is in none of them is ``other``, or ``idle``."""
_STRONGER = ("communication", "checkpoint", "validation", "data", "optimizer", "backward", "forward")
"""Where parts stand in each other the moment belongs to the first of these."""
_TORCHS_OWN = (
    ("enumerate(DataLoader)#", "data"),
    ("Optimizer.step#", "optimizer"),
    ("Optimizer.zero_grad#", "optimizer"),
    ("autograd::engine::evaluate_function", "backward"),
)
"""What torch names by itself, for a training loop that names nothing."""
_COMMUNICATION = re.compile(r"nccl|gloo:|c10d::|mpi:", re.IGNORECASE)
_WAIT_US = 200.0
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_SYNCS = re.compile(
    r"aten::_local_scalar_dense|cuda(Stream|Device|Event)Synchronize|cu(Stream|Ctx|Event)Synchronize|hip\w+Synchronize"
)


@dataclass(frozen=True)
class Timeline:
    """One rank's window of steps. Times in microseconds."""

    window: Interval
    steps: list[int]
    """The steps' numbers; empty where the trace marks none, and the window is all there is."""
    phases: dict[str, Intervals]
    """The thread that trains, by part; the parts do not overlap, and with ``idle`` they are the whole window."""
    named: bool
    """Whether the training loop named its parts; else they are what torch names by itself."""
    operators: list[Event]
    """On the host, in the window, all threads; sorted by thread, start, the longer first."""
    thread: object
    """The one that trains."""
    kernels: list[Event]
    """On the GPU: computing, copying."""
    launches: list[Event]
    """The host's calls that asked for them."""
    syncs: list[Event]
    """Where the host waited for a result, or would on a GPU."""
    counts: dict[str, int]
    """How often each part stands in the window."""

    @property
    def length(self) -> float:
        """Microseconds."""
        return self.window[1] - self.window[0]

    @property
    def n_steps(self) -> int:
        """Steps in the window; 1 where the trace marks none."""
        return len(self.steps) or 1


def is_communication(event: Event) -> bool:
    """Whether ``event`` sends something to other ranks."""
    return _COMMUNICATION.search(event.name) is not None


def lay_out(trace: Trace) -> Timeline:
    """Put ``trace`` in order. Where it marks no steps, the busiest thread is the one that trains."""
    marks = [e for e in trace.events if e.kind == "user_annotation" and e.name.startswith(STEP)]
    operators = [e for e in trace.events if e.kind == "cpu_op"]
    if marks:
        thread: object = marks[0].thread
        marks = [mark for mark in marks if mark.thread == thread]
        window = (min(m.start for m in marks), max(m.end for m in marks))
    else:
        thread = _busiest(operators or trace.events)
        window = (min(e.start for e in trace.events), max(e.end for e in trace.events))
    inside = [e for e in trace.events if e.start < window[1] and e.end > window[0]]
    operators = [e for e in inside if e.kind == "cpu_op"]
    operators.sort(key=lambda e: (str(e.thread), e.start, -e.length))
    own = [e for e in inside if e.thread == thread]
    kernels = sorted((e for e in inside if e.kind in _ON_GPU), key=lambda e: e.start)
    launches = [e for e in inside if e.kind in ("cuda_runtime", "cuda_driver")]
    waits = [e for e in (launches if kernels else operators) if _SYNCS.fullmatch(e.name)]
    waits += [] if not kernels else _copies_to_host(kernels, launches)
    named = any(e.kind == "user_annotation" and e.name.startswith(PHASE) for e in own)
    spans = _spans(own, named)
    spans += [("communication", part) for part in _waits_behind_backward(spans, own, inside)]
    return Timeline(
        window=window,
        steps=[int(n) for mark in marks if (n := mark.name.removeprefix(STEP)).isdecimal()],
        phases=_phases(spans, own, window),
        named=named,
        operators=operators,
        thread=thread,
        kernels=kernels,
        launches=launches,
        syncs=sorted(waits, key=lambda e: e.start),
        counts=Counter(name for name, _ in spans),
    )


def self_times(operators: Iterable[Event]) -> list[tuple[Event, float]]:
    """Each operator, and how long it took without those that it called; given sorted as ``Timeline.operators`` is."""
    found: list[tuple[Event, float]] = []
    open_: list[list[float]] = []  # [index in found, end]
    thread: object = None
    for event in operators:
        if event.thread != thread:
            thread, open_ = event.thread, []
        while open_ and open_[-1][1] <= event.start:
            open_.pop()
        if open_:
            index, end = int(open_[-1][0]), open_[-1][1]
            caller, own = found[index]
            found[index] = (caller, max(own - (min(event.end, end) - event.start), 0.0))
        found.append((event, event.length))
        open_.append([len(found) - 1, event.end])
    return found


def _busiest(events: Iterable[Event]) -> object:
    seconds: defaultdict[object, float] = defaultdict(float)
    for event in events:
        seconds[event.thread] += event.length
    return max(seconds, key=lambda thread: seconds[thread])


def _copies_to_host(kernels: Iterable[Event], launches: Iterable[Event]) -> list[Event]:
    """Calls that copy to memory which is not pinned: they return when the copy is done, and so wait for the GPU."""
    called = {e.correlation: e for e in launches if "Memcpy" in e.name}
    slow = [e for e in kernels if e.kind == "gpu_memcpy" and "DtoH" in e.name and "Pageable" in e.name]
    return [called[e.correlation] for e in slow if e.correlation in called]


def _spans(own: Iterable[Event], named: bool) -> list[tuple[str, Interval]]:
    spans = []
    for event in own:
        if event.kind == "user_annotation" and event.name.startswith(PHASE):
            spans.append((event.name.removeprefix(PHASE), (event.start, event.end)))
        elif is_communication(event):
            spans.append(("communication", (event.start, event.end)))
        elif not named:
            name = next((phase for prefix, phase in _TORCHS_OWN if event.name.startswith(prefix)), None)
            if name:
                spans.append((name, (event.start, event.end)))
    return spans


def _waits_behind_backward(
    spans: list[tuple[str, Interval]], own: Iterable[Event], inside: Iterable[Event]
) -> Intervals:
    """Where the backward pass runs no operator while a message is under way on another thread.

    So ``DistributedDataParallel`` waits for gloo: no operator stands for it. Gaps between operators are far shorter.
    """
    under_way = union((e.start, e.end) for e in inside if e.kind == "user_annotation" and is_communication(e))
    backward = union(part for name, part in spans if name == "backward")
    gaps = without(backward, union((e.start, e.end) for e in own if e.kind == "cpu_op"))
    return common([gap for gap in gaps if gap[1] - gap[0] > _WAIT_US], under_way)


def _phases(spans: list[tuple[str, Interval]], own: Iterable[Event], window: Interval) -> dict[str, Intervals]:
    """Each moment of the window in one part."""
    left: Intervals = [window]
    phases: dict[str, Intervals] = {}
    others = sorted({name for name, _ in spans} - set(_STRONGER))
    for name in (*_STRONGER, *others):
        whole = union(part for other, part in spans if other == name)
        phases[name] = common(left, whole)
        left = without(left, whole)
    busy = union((e.start, e.end) for e in own if e.kind == "cpu_op")
    phases["other"] = common(left, busy)
    phases["idle"] = without(left, busy)
    return phases
