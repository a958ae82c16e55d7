"""The session: what a running task holds, and all that it holds of us.

A training loop that keeps to it can be stopped, saved and continued without knowing how::

    saved = session.restore()                     # None on a fresh start
    for step in ...:
        ...
        session.log({"train/loss": loss}, step)
        stop = session.should_stop()              # the same answer on every rank
        session.save({"step": step, "model": model, "optimizer": optimizer})
        if stop:
            break
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from launcher.runtime.board import RankBoard
from launcher.runtime.checkpoint.saver import Saver, Wish
from launcher.runtime.checkpoint.snapshot import state_of
from launcher.runtime.checkpoint.weights import weights_sha256
from launcher.runtime.console import Meter, digest
from launcher.runtime.distributed import Agreement
from launcher.runtime.failures import cannot_be_saved, weights_not_finite
from launcher.runtime.peak import peak_flops
from launcher.runtime.profiler import StepProfiler
from launcher.runtime.resume import Restored
from launcher.runtime.rng import get_rng, set_rng
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import Settings
from launcher.runtime.signals import StopFlag
from launcher.runtime.spans import span
from launcher.runtime.trackers import Tracker, Value
from launcher.runtime.world import World

log = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0
_HEARTBEAT_EVERY_S = 4.0
"""The same where nothing is logged: data being decoded, a long validation. See ``launcher.runtime.lease.FENCE_S``."""
_SHORT_WAIT_S = 0.05
"""How long the loop waits for a save that is late: a quick one then never costs a kill more than the interval."""
_MOST_FAILURES = 3
"""Saves in a row that may fail before the run gives up: to train on would only lose more."""


class Session:
    """A live run. ``config`` is the task's config, ``world`` this process's place, ``rundir`` where things go."""

    def __init__(
        self,
        config: Any,
        world: World,
        rundir: RunDir,
        settings: Settings,
        *,
        restored: Restored | None,
        saver: Saver,
        stop: StopFlag,
        meter: Meter,
        open_trackers: Callable[[int], list[Tracker]],
        hosts: Sequence[str],
        beat: Callable[[str], None],
        profiler: StepProfiler,
    ) -> None:
        """``hosts`` is the node of each rank; ``beat`` is told where the training is, at each sign of progress."""
        self.config = config
        self.world = world
        self.rundir = rundir
        self.step = restored.manifest.step if restored else 0
        """Last optimizer step that was saved, restored or logged."""
        self.stopping, self.over = False, False  # the loop is to end; the run is, and does not go on
        self.complete = False  # the loop is to end, and nothing is left to do (``launcher.runtime.drill``)
        self.last: dict[str, float] = {}
        """Newest value of every number logged."""
        self.best_metric: float | None = None
        self._settings, self._throughput = settings.checkpoint, settings.throughput
        self._restored = restored
        self._saver, self._stop, self._beat = saver, stop, beat
        self._agreement: Agreement | None = None
        self._meter, self._open_trackers = meter, open_trackers
        self._trackers: list[Tracker] | None = None
        self.board = RankBoard(world.rank, hosts, world.device)
        self.profiler = profiler
        """Told each step that is done."""
        self._begun_at = self.step
        self.inherited = restored is not None and restored.inherited
        """Whether ``restore`` gives another run's state, from which this one begins."""
        self._continued = restored is not None and not self.inherited
        self._state: Mapping[str, Any] = {}
        self._stateful: list[str] = []
        self._status_at = float("-inf")
        self._stall_s: float | None = None
        self._total_steps: int | None = None
        self._waited_for: int | None = None

    def expect(self, total_steps: int) -> None:
        """Say how long the run is, for the progress bar, the time left and ``launcher status``."""
        self._total_steps = total_steps
        self._meter.expect(total_steps)

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """FLOP/s that this rank's device does at most in ``dtype``, by ``throughput.peak_tflops``; None: not known.

        Where it is to be measured that is done now: ask before the first step, and on every rank alike.
        """
        return peak_flops(self._throughput.peak_tflops, self.world.device, dtype)

    def restore(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, as ``save`` was given it, or None on a fresh start.

        Objects with a ``state_dict`` come back as their state dict; tensors are on the CPU and may be changed. The
        random number generators of Python, numpy and torch are put back as they were, so call it last before the loop.
        All ranks call it, once.
        """
        if self._agreement is not None:
            raise RuntimeError("session.restore() a second time: it would look like a fresh start")
        self._agreement = Agreement([0.0] * len(self._words()))
        self._beat("restore")
        restored, self._restored = self._restored, None
        self.profiler.begin(self.step)
        if restored is None:
            return None
        content = dict(restored.content)
        own = content.pop("session")
        self.best_metric, self.last = own["best_metric"], own["last"]
        self._state, self._stateful = dict(content), own["stateful"]  # what finish keeps if no step is left to do
        if restored.manifest.world_size == self.world.size:  # else there is nothing to go on with: the task's own seeds
            set_rng(own["rng"])
        log.info("%s after step %d", "beginning as a child" if self.inherited else "continuing", self.step)
        if self.inherited:  # a state of its own at once: the other run's may go from now on
            self._begin_to_save(self._full())
        if self.world.is_main:
            self.write_status("RUNNING")  # with the step that it goes on from
        return content

    def should_stop(self) -> bool:
        """Whether to save and leave the loop after this step.

        After ``restore`` all ranks get the same answer, and each must ask equally often: once a step, and as often as
        it likes in what takes long, validation for one. Among several ranks the answer comes a call after one of them
        was asked to stop: the step hides the question. Before ``restore`` it is this process's own: a task that is
        still reading its data may end by raising ``Stopped``.

        Raises:
            TrainingFailed: a state that was to be saved has weights that are not finite.
            UserError: three saves in a row failed, or another attempt has taken the run over.
        """
        self._alive(f"after step {self.step}", _HEARTBEAT_EVERY_S)
        if self._agreement is None:
            return bool(self._stop)
        if not self.stopping:
            with span("communication"):
                stop, cannot_save, not_finite, *figures = self._agreement.largest(self._words())
            self.board.hear(figures)
            self.stopping, self.over = bool(stop), stop > 1
            self._give_up(bool(cannot_save), bool(not_finite))
        return self.stopping

    def save(self, state: Mapping[str, Any], metric: float | None = None, *, due: bool = False) -> None:
        """Offer the state after a step; it is saved when the cadence, a stop or the end of the run asks for it.

        The loop waits for a copy of the state, no longer; it is written while the next steps are computed.

        Args:
            state: ``step`` (int), ``model``, and whatever else the loop needs to go on: tensors, plain values, or
                objects with ``state_dict()``. Each rank's own is kept; what equals rank 0's is written once.
            metric: a validation result, smaller is better; of the best one ``model`` and the plain values are kept.
            due: save it whatever the cadence says; the same on every rank.

        Raises:
            TypeError: something in the state cannot be saved.
        """
        if self._agreement is None:
            raise RuntimeError("session.save() before session.restore(): the run would start over each time")
        if "session" in state:
            raise ValueError("the state may not have a key 'session': it is the session's own")
        self._beat(f"save after step {state['step']}")
        self._state = state
        self._stateful = [name for name, value in state.items() if hasattr(value, "state_dict")]
        self.step = int(state["step"])
        wishes = []
        if metric is not None and metric < (math.inf if self.best_metric is None else self.best_metric):  # never NaN
            self.best_metric = metric
            if self._settings.best and self.world.is_main:
                wishes.append(Wish(kind="best", step=self.step, entries=self._light(), metric=metric))
        every = self._settings.every_steps
        # Offered in the step that was restored, before any other: something was done that the checkpoint still owes.
        again = self._continued and self.step == self._begun_at and not self.stopping
        if due or self.stopping or again or (every and self.step % every == 0):
            wishes += self._full(again=again)
        self._begin_to_save(wishes)
        self._meter.show(self.step)
        self.profiler.at(self.step, last=self.stopping)

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record numbers, texts or pictures under ``<split>/<name>`` as of ``step``. Rank 0 writes them."""
        self.last |= {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
        self.step = max(self.step, step)
        if "time/total" in values:
            self.board.note(values)
        if not self.world.is_main:
            self._beat(f"after step {step}")
            return
        self._let_commit(step)
        if self._trackers is None:  # not before: only now is it known after which step the curves go on
            # A task that logs the restored step has something left to say of it: then it alone says it.
            self._trackers = self._open_trackers(min(self._begun_at, step - 1))
        if values:
            values = {**values, **self._of_saving()}
            if "time/total" in values:
                values |= self.board.told()
        for tracker in self._trackers:
            tracker.log(values, step)
        fresh = not {"train/loss", "val/loss"}.isdisjoint(values)  # or the line would show an older step's loss
        self._meter.show(step, digest(self.last) if fresh else "", important="val/loss" in values)
        self._alive(f"after step {step}", _STATUS_EVERY_S)

    def write_status(self, state: str, reason: str = "") -> None:
        """Replace ``status.json``: state, step, last loss, samples/s, step saved last, heartbeat (epoch seconds)."""
        self.rundir.write_status(
            state=state,
            step=self.step,
            total_steps=self._total_steps,
            loss=self.last.get("train/loss"),
            val_loss=self.last.get("val/loss"),
            samples_per_s=self.last.get("train/samples_per_s"),
            saved_step=self._saver.committed,
            heartbeat=time.time(),
            reason=reason,
        )

    def settle(self) -> bool:
        """Wait until nothing is being written any more; whether the last step is saved.

        Raises:
            Superseded: another attempt has taken the run over, and its files with it.
        """
        if self._agreement is not None:
            self._agreement.close()
        self._saver.wait()
        self._saver.require_run()
        return self._saver.committed == self.step

    def finish(self, at_end: str) -> str | None:
        """Keep what a finished run keeps (``state``, ``weights`` or ``nothing``); returns the weights' SHA-256.

        Raises:
            TrainingFailed, UserError: it cannot be saved.
        """
        if not self.settle():
            self._saver.requested = None  # if it was asked for, it failed: once more
        model = self._state.get("model")
        if model is None:
            return None
        if at_end == "state":
            self._begin_to_save(self._full())
        elif at_end == "weights" and self.world.is_main:
            self._begin_to_save([Wish(kind="final", step=self.step, entries=self._light())])
        self._saver.wait()
        self._give_up(bool(self._saver.failures), self._saver.not_finite is not None)
        return weights_sha256(state_of(model)) if self.world.is_main else None

    def tidy(self, at_end: str) -> None:
        """On rank 0, remove the full states of a COMPLETED run that keeps weights or nothing."""
        if at_end != "state":
            self._saver.drop_states()

    def let_save_end(self, timeout_s: float) -> None:
        """Wait, at most so long, for the save that is under way."""
        self._saver.wait(timeout_s)

    def close_trackers(self, summary: Mapping[str, Any]) -> None:
        """Let every tracker write what only the end knows; none is left open."""
        trackers, self._trackers = self._trackers or [], None
        with ExitStack() as stack:  # each of them, whatever another one raises
            for tracker in reversed(trackers):
                stack.callback(tracker.finish, summary)

    @property
    def saved_step(self) -> int | None:
        """Step of the last full state that this attempt has committed or restored."""
        return self._saver.committed

    @property
    def save_problem(self) -> str:
        """Why the last save failed; empty: it did not."""
        return self._saver.error if self._saver.failures else ""

    def _let_commit(self, step: int) -> None:
        """Before ``step`` is told anywhere: should more than an interval be lost with it, give the save a moment."""
        every, saver = self._settings.every_steps, self._saver
        is_late = every is not None and step - (saver.committed or 0) > every
        if is_late and saver.requested not in (None, self._waited_for):
            self._waited_for = saver.requested
            with span("checkpoint"):
                saver.wait(_SHORT_WAIT_S)

    def _alive(self, where: str, every_s: float) -> None:
        """A sign of life: to the watchdog, and at most each ``every_s`` seconds to whoever reads the status."""
        self._beat(where)
        if self.world.is_main and time.monotonic() - self._status_at >= every_s:
            self._status_at = time.monotonic()
            self._saver.require_run()  # else the status is another attempt's
            self.write_status("RUNNING")

    def _begin_to_save(self, wishes: list[Wish]) -> None:
        if not wishes:
            return
        own = {"best_metric": self.best_metric, "last": self.last, "stateful": self._stateful, "rng": get_rng()}
        with span("checkpoint"):
            self._saver.start({**self._state, "session": own}, wishes)
        self._stall_s = self._saver.stall_s

    def _full(self, *, again: bool = False) -> list[Wish]:
        """The full state, unless that of this step has been saved; all ranks ask in the same step."""
        if self._saver.requested == self.step and not again:
            return []
        return [Wish(kind="step", step=self.step, entries=frozenset((*self._state, "session")))]

    def _light(self) -> frozenset[str]:
        """The model and the plain values of the state: what using the model takes, without what training on takes."""
        return frozenset(name for name in self._state if name == "model" or name not in self._stateful)

    def _give_up(self, cannot_save: bool, not_finite: bool) -> None:
        if not_finite:
            raise weights_not_finite(self.step, self._saver.not_finite)
        if cannot_save:
            raise self._saver.superseded or cannot_be_saved(self.rundir.path, self.step, self._saver.error)

    def _words(self) -> list[float]:
        """What this rank tells the others in each step."""
        saver = self._saver
        cannot_save = bool(saver.superseded) or saver.failures >= _MOST_FAILURES
        return [float(w) for w in (self._stop.word, cannot_save, saver.not_finite is not None)] + self.board.words()

    def _of_saving(self) -> dict[str, float]:
        """How long the loop waited for a save since the last log, and how many in a row have failed, if any."""
        values = {} if self._stall_s is None else {"time/save": self._stall_s}
        self._stall_s = None
        return values | ({"checkpoint/failures": float(self._saver.failures)} if self._saver.failures else {})
