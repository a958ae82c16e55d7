"""Cancelling packed runs: each leaves its queue, as its job is not its own; the last ones take their jobs along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.manage.states import RunState
from launcher.runtime.pack.queue import Queue, entry_name
from launcher.runtime.sweepdir import Submission, SweepDir

Row = tuple[SweepDir, RunState]


@dataclass(frozen=True)
class PackedRuns:
    """Runs of one packed submission that are to be cancelled."""

    sweep: SweepDir
    submission: Submission
    runs: tuple[str, ...]

    @property
    def are_all(self) -> bool:
        """Whether nothing is left for the workers to do without them."""
        queue = self._queue
        open_ones = {*queue.list_waiting(), *queue.claims()}
        return open_ones <= set(self._entries().values())

    def leave_queue(self) -> None:
        """Have none of them begin or go on: those that wait are CANCELLED now, the others by their workers."""
        queue = self._queue
        for run, entry in self._entries().items():
            if queue.end(entry, None):
                self.sweep.run(run).path.mkdir(parents=True, exist_ok=True)
                self.sweep.run(run).say_state("CANCELLED", "cancelled; the same command goes on")
            else:
                queue.cancellation(entry).parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
                queue.cancellation(entry).touch()

    @property
    def _queue(self) -> Queue:
        return Queue(self.sweep.queue(self.submission.token))

    def _entries(self) -> dict[str, str]:
        wanted = frozenset(self.runs)
        return {run: entry_name(i) for i, run in enumerate(self.submission.runs) if run in wanted}


def part(rows: Sequence[Row]) -> tuple[list[Row], list[PackedRuns]]:
    """``rows`` with a job each, and those that share jobs, by submission."""
    own: list[Row] = []
    packed: dict[tuple[SweepDir, str], list[str]] = {}
    newest: dict[SweepDir, dict[str, Submission]] = {}
    for sweep, state in rows:
        if sweep not in newest:
            taken = [s for s in sweep.read_submissions() if s.job_id is not None and not s.withdrawn]
            newest[sweep] = {run: submission for submission in taken for run in submission.runs}
        submission = newest[sweep].get(state.run_id)
        if submission is None or submission.workers is None:
            own.append((sweep, state))
        else:
            packed.setdefault((sweep, submission.token), []).append(state.run_id)
    found = [PackedRuns(sweep, newest[sweep][runs[0]], tuple(runs)) for (sweep, _), runs in packed.items()]
    return own, found
