"""Whether a worker that stopped or broke down is started again: as for a run, but what counts is that members began."""

from __future__ import annotations

from launcher.runtime.pack.queue import Queue
from launcher.runtime.policy import OUT_OF_TIME, Decision, Ended, decide
from launcher.runtime.progress import began_since_requeue, requeues, starts, without_progress
from launcher.runtime.settings import RequeueSettings


def judge_worker(queue: Queue, job: str, code: int, cause: str, limits: RequeueSettings, restarts: int) -> Decision:
    """``decide`` for the worker ``job``: a start that led to a member's beginning is progress.

    What becomes of a member that breaks down again and again is decided for itself, so this ends too.
    """
    events = queue.events(job)
    silent = 0 if began_since_requeue(events, job, restarts) else 1
    led_on = sum(event["event"] == "began" for event in events)
    idle = without_progress(events, job, led_on) + silent
    return decide(Ended(code, cause, starts(events, job) + silent, idle, requeues(events, job, OUT_OF_TIME)), limits)
