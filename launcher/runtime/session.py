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
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from launcher.runtime.checkpoints import Checkpoints, weights_sha256
from launcher.runtime.console import Meter
from launcher.runtime.distributed import Agreement, from_all_ranks
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import Settings
from launcher.runtime.signals import StopFlag
from launcher.runtime.trackers import Tracker, Value
from launcher.runtime.world import World

log = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0


class Session:
    """A live run. ``config`` is the task's config, ``world`` this process's place, ``rundir`` where things go."""

    def __init__(
        self,
        config: Any,
        world: World,
        rundir: RunDir,
        settings: Settings,
        *,
        attempt: int,
        stop: StopFlag,
        meter: Meter,
        open_trackers: Callable[[int], list[Tracker]],
    ) -> None:
        self.config = config
        self.world = world
        self.rundir = rundir
        self.step = 0
        """Last optimizer step that was saved, restored or logged."""
        self.stopping = False
        self.last: dict[str, float] = {}
        """Newest value of every number logged."""
        self.best_metric: float | None = None
        self._settings = settings.checkpoint
        self._checkpoints = Checkpoints(rundir, settings.checkpoint, attempt)
        self._stop = stop
        self._agreement = Agreement()
        self._meter = meter
        self._open_trackers = open_trackers
        self._trackers: list[Tracker] | None = None
        self._state: Mapping[str, Any] = {}
        self._stateful: list[str] = []
        self._saved_step: int | None = None
        self._status_at = float("-inf")

    def expect(self, total_steps: int) -> None:
        """Say how long the run is, for the progress bar and the time left."""
        self._meter.expect(total_steps)

    def restore(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, as ``save`` was given it, or None on a fresh start.

        Objects with a ``state_dict`` come back as their state dict. The random number generators of Python, numpy
        and torch are put back as they were, so call it last before the loop.
        """
        content, problems = self._checkpoints.restore()
        for problem in problems:
            log.warning("%s; passed over", problem)
        self._stop.patient = True  # from here on a signal waits for the step, which is then saved
        if content is None:
            if problems:
                log.warning("no whole checkpoint is left: starting over")
            return None
        own = content.pop("session")
        self.step = self._saved_step = int(own["step"])
        self.best_metric, self.last = own["best_metric"], own["last"]
        self._state, self._stateful = dict(content), own["stateful"]  # what finish keeps if no step is left to do
        if len(own["rng"]) == self.world.size:  # with other ranks there is nothing to go on with: the task's own seeds
            _set_rng(own["rng"][self.world.rank])
        log.info("continuing after step %d", self.step)
        if self.world.is_main:
            self.write_status("RUNNING")  # with the step that it goes on from
        return content

    def should_stop(self) -> bool:
        """Whether to save and leave the loop after this step. All ranks get the same answer; call it once a step.

        Among several ranks it comes a step after one of them was asked to stop: the step hides the question.
        """
        self.stopping = self.stopping or self._agreement.any_rank(bool(self._stop))
        return self.stopping

    def save(self, state: Mapping[str, Any], metric: float | None = None) -> None:
        """Offer the state after a step; it is written when the cadence, a stop or the end of the run asks for it.

        Args:
            state: ``step`` (int), ``model``, and whatever else the loop needs to go on: tensors, plain values, or
                objects with ``state_dict()``.
            metric: a validation result, smaller is better; of the best one ``model`` and the plain values are kept.
        """
        if "session" in state:
            raise ValueError("the state may not have a key 'session': it is the session's own")
        self._state = state
        self._stateful = [name for name, value in state.items() if hasattr(value, "state_dict")]
        self.step = int(state["step"])
        every = self._settings.every_steps
        best = math.inf if self.best_metric is None else self.best_metric
        if metric is not None and metric < best:  # never NaN: nothing would be smaller than it
            self.best_metric = metric
            if self._settings.best and self.world.is_main:
                self._checkpoints.save_best(self.step, self._light(), metric)
        if self.stopping or (every and self.step % every == 0):
            self._save_state()
        self._meter.show(self.step)

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record numbers, texts or pictures under ``<split>/<name>`` as of ``step``. Rank 0 writes them."""
        self.last |= {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
        self.step = max(self.step, step)
        if not self.world.is_main:
            return
        if self._trackers is None:  # not before: only now is it known after which step the curves go on
            self._trackers = self._open_trackers(self._saved_step or 0)
        for tracker in self._trackers:
            tracker.log(values, step)
        fresh = not {"train/loss", "val/loss"}.isdisjoint(values)  # or the line would show an older step's loss
        self._meter.show(step, self._digest() if fresh else "", important="val/loss" in values)
        if time.monotonic() - self._status_at >= _STATUS_EVERY_S:
            self._status_at = time.monotonic()
            self.write_status("RUNNING")

    def write_status(self, state: str, reason: str = "") -> None:
        """Replace ``status.json``: state, step, last loss, samples/s, heartbeat (seconds since the epoch)."""
        self.rundir.write_status(
            state=state,
            step=self.step,
            loss=self.last.get("train/loss"),
            val_loss=self.last.get("val/loss"),
            samples_per_s=self.last.get("train/samples_per_s"),
            heartbeat=time.time(),
            reason=reason,
        )

    def finish(self, at_end: str) -> str | None:
        """Keep what a finished run keeps (``state``, ``weights`` or ``nothing``); returns the weights' SHA-256."""
        self._agreement.close()
        model = self._state.get("model")
        if model is None:
            return None
        if at_end == "state":
            self._save_state()
        if not self.world.is_main:
            return None
        if at_end == "weights":
            self._checkpoints.save_final(self.step, self._light())
        if at_end != "state":
            self._checkpoints.drop_states()
        return weights_sha256(_state_of(model))

    def close_trackers(self, summary: Mapping[str, Any]) -> None:
        """Let every tracker write what only the end knows; none is left open."""
        trackers, self._trackers = self._trackers or [], None
        for tracker in trackers:
            tracker.finish(summary)

    @property
    def saved_step(self) -> int | None:
        """Step of the last full state written or restored by this attempt."""
        return self._saved_step

    def _save_state(self) -> None:
        """Write the full state; all ranks call it in the same step."""
        if self._saved_step == self.step:
            return
        own = {"step": self.step, "best_metric": self.best_metric, "last": self.last, "stateful": self._stateful}
        own["rng"] = from_all_ranks(_get_rng())
        content = {name: _state_of(value) for name, value in self._state.items()}
        if self.world.is_main:
            self._checkpoints.save_state(self.step, content | {"session": own})
        self._saved_step = self.step

    def _light(self) -> dict[str, Any]:
        """The model and the plain values of the state: what using the model takes, without what training on takes."""
        plain = {k: v for k, v in self._state.items() if k not in self._stateful}
        return plain | {"model": _state_of(self._state["model"])}

    def _digest(self) -> str:
        names = {"train/loss": "loss {:.4f}", "val/loss": "val {:.4f}", "train/samples_per_s": "{:.0f} samples/s"}
        return "  ".join(form.format(self.last[name]) for name, form in names.items() if name in self.last)


def _state_of(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else value


def _get_rng() -> dict[str, Any]:
    """Every generator's state as tensors and plain values, the only things that a checkpoint may hold."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.array(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_rng(states: Mapping[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):  # there may be fewer GPUs now
        torch.cuda.set_rng_state(state, index)
