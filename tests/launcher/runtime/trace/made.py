"""Traces made by hand, in torch's format; times in microseconds."""

from __future__ import annotations

import gzip
import json

HOST, GPU = ("host", 1), (0, 7)


def event(name, start, length, kind="cpu_op", thread=HOST, **args):
    """An event that took time."""
    where = {"pid": thread[0], "tid": thread[1]}
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": length, "args": args} | where


def step(number, start, length):
    """The mark of a whole step."""
    return event(f"ProfilerStep#{number}", start, length, "user_annotation")


def phase(name, start, length):
    """The mark of a part of a step."""
    return event(f"phase::{name}", start, length, "user_annotation")


def launched(name, asked, start, length, correlation, kind="kernel", stream=7):
    """A kernel, and the call that asked for it."""
    return [
        event("cudaLaunchKernel", asked, 5, "cuda_runtime", correlation=correlation),
        event(name, start, length, kind, (0, stream), correlation=correlation),
    ]


def write(path, events, **more):
    """The trace as a file; gzipped where the name says so."""
    text = json.dumps({"schemaVersion": 1, "traceEvents": events, **more}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def gpu_step(number, at, *, data=0, kernels=10, kernel=900, gap=100, sync=False, comm=(0, 0), save=0, validate=0):
    """One step on a GPU: data, then kernels that follow each other with gaps of ``gap``.

    Args:
        sync: the host waits for each kernel before it asks for the next.
        comm: how long an all-reduce takes behind the kernels, and how much of it runs beside them.
        save, validate: how long the host does that, the GPU idle.
    """
    events, now = [], at
    if data:
        events.append(phase("data", now, data))
        now += data
    begin = now
    for i in range(kernels):
        correlation = number * 1000 + i
        asked = now if sync or gap else begin + 6 * i
        events += launched(f"gemm_{i % 3}", asked, now, kernel, correlation)
        now += kernel
        if sync:
            events.append(event("cudaStreamSynchronize", asked + 6, now - asked - 3, "cuda_runtime"))
        now += gap
    length, beside = comm
    if length:
        name = "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
        events += launched(name, begin + 7, now - gap - beside, length, number * 1000 + 999, stream=20)
        now = max(now, now - gap - beside + length)
    events.append(phase("forward", begin, now - begin))
    for name, took in (("validation", validate), ("checkpoint", save)):
        if took:
            events.append(phase(name, now, took))
            now += took
    return [step(number, at, now - at), *events], now


def gpu_run(steps=3, first=10, **values):
    """So many steps, one behind the other."""
    events, now = [], 1_000_000.0
    for number in range(first, first + steps):
        more, now = gpu_step(number, now, **values)
        events += more
    return events
