"""One attempt of a run: its process group, its session, its task, and what the run directory says of its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher.runtime.console import Meter
from launcher.runtime.errors import TASK_RAISED, ExitCode, UserError
from launcher.runtime.failures import Hung, PeerLost, record_failure, told
from launcher.runtime.files import write_json
from launcher.runtime.hang_report import dump_flight_record, dump_stacks, end_now
from launcher.runtime.lease import CHECK_S, Lease, Superseded
from launcher.runtime.outcome import Outcome, finish, summary_of
from launcher.runtime.plan import Plan
from launcher.runtime.redaction import redacted, scrubbed
from launcher.runtime.rendezvous import Meeting
from launcher.runtime.signals import StopFlag
from launcher.runtime.task_config import resolve_name
from launcher.runtime.watchdog import Check, Watchdog
from launcher.runtime.world import World

if TYPE_CHECKING:  # they import torch
    from launcher.runtime.preflight import Preflight
    from launcher.runtime.resume import Search
    from launcher.runtime.session import Session
    from launcher.runtime.trackers import Tracker
    from launcher.runtime.trackers.queued import Beside

log = logging.getLogger(__name__)

Task = Callable[["Session"], "Mapping[str, Any] | None"]
"""Called with the session; returns what the summary says beyond the session's own numbers."""
_LAST_SAVE_S = 120.0
"""How long a task that broke down waits for the save that is under way: what it saves is from before."""


def run_attempt(
    plan: Plan,
    world: World,
    stop: StopFlag,
    meter: Meter,
    meeting: Meeting,
    lease: Lease | None,
    listener: Tracker | None = None,
    task: Task | None = None,
    *,
    preflight: bool = False,
) -> Outcome:
    """Train as one rank of the attempt that ``meeting`` agreed on; whatever ends it is told in the run directory.

    Args:
        lease: rank 0's right to commit.
        listener: as for ``run_job``.
        task: what is called with the session; None: what ``plan.target`` names.
        preflight: try the nodes first, as ``preflight`` of the config says.

    Raises:
        UserError: the task refused its input, a node did not pass, or another rank failed.
        TrainingFailed: the training diverged.
    """
    from launcher.runtime.distributed import process_group

    now = _Attempt(plan, world, meeting.verdict.attempt, stop, lease or Lease(plan.rundir.lease, ""), listener)
    try:
        with ExitStack() as stack:
            nodes = stack.enter_context(now.preflight(meeting.store)) if preflight else None
            stack.enter_context(process_group(world, meeting.store))
            try:
                if nodes is not None:
                    nodes.together()
                return now.run(meter, task or resolve_name(plan.target))
            except BaseException as error:
                now.failed(error)  # told before the peers are let go of: they ask who was first
                raise
    except BaseException as error:
        if now.outcome is not None and world.is_main:
            log.warning("all is saved, but another rank left too early: %s", error)
            return now.outcome
        meant = now.failed(error)
        if meant is error:
            raise
        raise meant from error
    finally:
        now.ended()
        now.close_beside()  # last: all that matters is written by now


class _Attempt:
    """What is known of the attempt so far, for the record of its end."""

    def __init__(
        self, plan: Plan, world: World, number: int, stop: StopFlag, lease: Lease, listener: Tracker | None
    ) -> None:
        self.outcome: Outcome | None = None
        self._plan, self._world, self._number, self._stop = plan, world, number, stop
        self._rundir = plan.rundir
        self._lease, self._listener = lease, listener
        self._session: Session | None = None
        self._beside: list[Beside] = []
        self._hosts = [world.node]
        self._who = f"rank {world.rank} on {world.node}"
        self._begun = False
        self._error: BaseException | None = None
        self._reason, self._code = "", ExitCode.BUG

    def run(self, meter: Meter, task: Task) -> Outcome:
        """From the start event to the summary."""
        from launcher.runtime.distributed import from_all_ranks
        from launcher.runtime.resume import find

        started = time.monotonic()
        self._hosts = from_all_ranks(self._world.node)
        with self._watchdog() as watchdog:
            plan, may_restart = self._plan, self._plan.settings().checkpoint.restart_if_damaged
            search = find(self._rundir, plan.run_id, self._world, restart_if_damaged=may_restart, parent=plan.parent)
            self._begin(search)
            self._session = session = self._open_session(meter, search, watchdog.beat)
            if self._world.is_main:
                session.write_status("RUNNING")
            extra = self._train(task, session)
            self.outcome = finish(self._plan, session, self._stop, extra, time.monotonic() - started)
        self._reason, self._code = self.outcome.state, self.outcome.code
        return self.outcome

    def preflight(self, store: Any) -> Preflight:
        """What is tried before the task is called."""
        from launcher.runtime.preflight import Preflight

        deadline_s = self._plan.settings().preflight.deadline_s
        return Preflight(self._world, self._rundir, self._number, store, deadline_s, self._stop, self._stuck)

    def _train(self, task: Task, session: Session) -> Mapping[str, Any]:
        try:
            return summary_of(task(session))
        except SystemExit as error:
            raise UserError(f"the task called sys.exit({error.code!r}): it should return, or raise an error") from error
        except Exception as error:
            error.add_note(TASK_RAISED)
            raise

    def _watchdog(self) -> Watchdog:
        """Ends this rank where it hangs, and rank 0 where another attempt has taken the run over."""
        timeout_s = self._plan.settings().watchdog.timeout_s
        checks = [Check(CHECK_S, self._lease.lost_to)] if self._world.is_main else []
        return Watchdog(timeout_s, who=self._who, on_hang=self._hung, on_lost=self._lost, checks=checks)

    def _hung(self, message: str) -> None:
        self._stuck(Hung(f"{message}; see {self._rundir.hang(self._world.rank)}"))

    def _stuck(self, error: UserError) -> None:
        rundir, rank = self._rundir, self._world.rank
        end_now(
            ExitCode.STOPPED_NOT_SAVED,
            lambda: log.error("%s", error),
            lambda: dump_stacks(rundir.hang(rank), who=self._who, where=str(error)),
            lambda: self.failed(error),
            lambda: dump_flight_record(rundir.flight_prefix, rundir.flight(rank), rank),
            self.ended,
        )

    def _lost(self, message: str) -> None:
        end_now(
            ExitCode.STOPPED_NOT_SAVED,
            lambda: self.failed(Superseded(message)),
            self.ended,
        )

    def _open_session(self, meter: Meter, search: Search, beat: Callable[[str], None]) -> Session:
        from launcher.runtime.checkpoint.saver import Author, Saver
        from launcher.runtime.fingerprint import fingerprint
        from launcher.runtime.profiler import StepProfiler
        from launcher.runtime.session import Session
        from launcher.runtime.trackers import About, start_trackers

        plan, world, settings = self._plan, self._world, self._plan.settings()
        author = Author(run_id=plan.run_id, attempt=self._number, lease=self._lease, fingerprint=fingerprint(world))
        restored = search.restored
        own = restored.path if restored and not restored.inherited else None
        values, science = redacted(plan.config_values()), redacted(plan.science)
        listeners = [] if self._listener is None else [self._listener]
        kind: Callable[..., Session] = Session
        if settings.drill.stop_after is not None:
            from launcher.runtime.drill import DrillSession

            kind = partial(DrillSession, drill=settings.drill, attempt=self._number)
        return kind(
            plan.config(),
            world,
            self._rundir,
            settings,
            restored=restored,
            saver=Saver(self._rundir, settings.checkpoint, world, author, own),
            stop=self._stop,
            meter=meter,
            open_trackers=lambda step: self._opened(
                *start_trackers(settings.tracker, About(self._rundir, values, science, step, self._labels())),
                *listeners,
            ),
            hosts=self._hosts,
            beat=beat,
            profiler=StepProfiler(settings.profiler, self._rundir, world, self._number),
        )

    def _opened(self, *trackers: Tracker) -> list[Tracker]:
        from launcher.runtime.trackers.queued import Beside

        self._beside = [tracker for tracker in trackers if isinstance(tracker, Beside)]
        return [*trackers]

    def _labels(self) -> dict[str, str]:
        """What tells the run apart in a tracker, beside its config."""
        known = self._plan.labels() | {"attempt": str(self._number), "host": self._world.node}
        return known | ({"slurm_job_id": self._world.job_id} if self._world.job_id else {})

    def failed(self, error: BaseException) -> BaseException:
        """Record ``error``, once; returns what it means (see ``failures.told``)."""
        if self._error is not None:
            return self._error
        meant = told(error, self._rundir, self._world) if isinstance(error, Exception) else error
        self._error, self.outcome = meant, None
        if isinstance(meant, UserError | KeyboardInterrupt):
            self._code = getattr(meant, "code", ExitCode.STOPPED_NOT_SAVED)
            self._reason = scrubbed(str(meant)) or "interrupted"
        else:
            self._code, self._reason = ExitCode.BUG, scrubbed(f"{type(meant).__name__}: {meant}")
            log.error("the task raised", exc_info=meant)
        if isinstance(
            meant, PeerLost | Superseded
        ):  # seen by the watchdog or by the training loop, whichever looks first
            log.error("%s", meant)
        if not isinstance(meant, KeyboardInterrupt):
            record_failure(self._rundir, self._world, self._number, meant, self._code)
        if self._session and not isinstance(meant, KeyboardInterrupt | PeerLost | Superseded | Hung):
            self._session.let_save_end(_LAST_SAVE_S)
        return meant

    def ended(self) -> None:
        """Write how it ended, on rank 0."""
        if not self._world.is_main:
            return
        lost = self._lease.lost_to() is not None  # then all but the line of its end is another attempt's
        if lost and not self._begun:
            return
        self._begin(None)
        step = self._session.step if self._session else 0
        failed = self._error is not None and not lost
        summary = self._write_failure(step) if failed else {}
        self._event("end", step=step, reason=self._reason, code=int(self._code))
        if self._session and failed:
            try:
                self._session.close_trackers(summary)
            except OSError as error:  # of what ended it all is said by now; on a full disk curves cannot be drawn
                log.error("curves are not complete: %s", error)

    def close_beside(self) -> None:
        """No more traces, and trackers are waited for; a process may train another run after this one."""
        if self._session:
            self._session.profiler.close()
        try:
            for beside in self._beside:
                beside.wait()
        except KeyboardInterrupt:
            log.warning("not waiting for the trackers any longer")

    def _begin(self, search: Search | None) -> None:
        """Write that it starts, and from which checkpoint; None: it never came to look for one."""
        if self._begun or not self._world.is_main:
            return
        self._lease.require()
        self._begun = True
        self._rundir.summary.unlink(missing_ok=True)  # an earlier attempt's, which failed
        if search is None:
            self._event("start", step=None, reason="", code=None)
            return
        restored = search.restored
        values: dict[str, Any] = {"step": 0, "from": None, "reason": "", "code": None}
        if restored is not None:
            origin = {"parent": restored.manifest.run_id} if restored.inherited else {"from": restored.path.name}
            values |= {"step": restored.manifest.step} | origin
        if search.problems:
            values["passed_over"] = search.problems
        self._event("start", **values)

    def _write_failure(self, step: int) -> dict[str, Any]:
        """Write status and summary; returns the summary, which is empty where it may yet go on."""
        stopped = self._code == ExitCode.STOPPED_NOT_SAVED
        state = "PREEMPTED" if stopped else "FAILED"
        summary = {} if stopped else {"status": "FAILED", "step": step, "reason": self._reason}
        if self._session:
            self._session.write_status(state, self._reason)
        else:
            self._rundir.say_state(state, self._reason)
        if summary:
            write_json(self._rundir.summary, summary)
        return summary

    def _event(self, event: str, **values: Any) -> None:
        self._rundir.add_attempt_event(
            event=event,
            attempt=self._number,
            job_id=self._world.job_id,
            restarts=self._world.restarts,
            hosts=list(dict.fromkeys(self._hosts)),
            incarnation=self._world.incarnation,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            **values,
        )
