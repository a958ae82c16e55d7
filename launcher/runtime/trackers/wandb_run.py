"""Weights & Biases: a run whose id is ours, through all its attempts; without a server it writes files to be sent."""

from __future__ import annotations

import logging
import shlex
import threading
import warnings
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from launcher.runtime.curves import read_series
from launcher.runtime.errors import UserError
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import About
from launcher.runtime.trackers.values import Value, finals

log = logging.getLogger(__name__)

EXTRA = 'pip install "seemore-launcher[wandb]"'
_REACHED_WITHIN_S = 10.0
"""How long a server may take to answer before the run is written to files instead."""
_SENT_WITHIN_S = 20.0
"""How long the end waits for what is still to be sent; it stays in files."""
_SHOWN = 300
"""Most characters of W&B's error."""
_lock, _live = threading.Lock(), set[int]()
"""Runs of this process that W&B's own process still writes: an earlier member of a sweep may end late."""


class WandbRun:
    """A run of W&B. It takes steps in rising order only: what is done again after a kill it leaves out itself.

    A folder that is sent replaces what the server has of the run, so each offline one begins with the run's past.
    """

    def __init__(self, about: About, chosen: TrackerSettings) -> None:
        """Begin or go on with it, offline where the server does not answer in time.

        Raises:
            UserError: W&B is not installed.
        """
        for module in ("wandb", "pydantic", "google"):
            warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
        try:
            import wandb
        except ModuleNotFoundError as error:
            if error.name != "wandb":
                raise
            raise UserError(f"W&B is not installed here: {EXTRA}") from None
        self._wandb, self._about, self._chosen = wandb, about, chosen
        self._settings = _quiet(wandb)
        self._run = self._begun(chosen)
        self._tell_the_past(about.step)

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Numbers and texts as they are, pictures as W&B's."""
        shown = {k: self._wandb.Image(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
        self._run.log(shown, step=step)

    def flush(self) -> None:
        """Nothing is gathered: W&B's own process writes."""

    def catch_up(self) -> bool:
        """Nothing is made up for: W&B takes no step that lies behind another one."""
        return False

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what runs are compared by, and how it ended; of a run that was stopped that it goes on."""
        try:
            self._end(summary)
        except Exception as error:  # W&B's process is gone: Slurm's SIGTERM goes to every process of a job
            log.info("wandb: its process has ended (%s); the run is written anew, offline", error)
            self._close(exit_code=1)
            self._run = self._init(self._chosen, "offline")
            self._tell_the_past(None)
            self._end(summary)
        finally:
            self._close()

    def _end(self, summary: Mapping[str, Any]) -> None:
        weights = {name: summary[name] for name in ("weights_sha256",) if summary.get(name) is not None}
        self._run.summary.update(finals(summary) | weights)
        done = summary.get("status") == "COMPLETED"
        if not summary and self._about.rundir.state() == "PREEMPTED":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if done else 1)

    def _close(self, exit_code: int = 0) -> None:
        """Let W&B's process write all and end, where no other run needs it: a packed member ends without goodbyes."""
        with _lock:
            _live.discard(id(self))
            if not _live:
                with suppress(Exception):  # of a process that is gone
                    self._wandb.teardown(exit_code=exit_code)

    def _tell_the_past(self, up_to: int | None) -> None:
        """Log what the ledger has, from the step on that W&B knows of, up to the one that the run goes on from."""
        metrics, past = self._about.rundir.metrics, defaultdict[int, dict[str, float]](dict)
        if up_to == 0 or not metrics.exists():
            return
        for name, (steps, values) in read_series(metrics).items():
            for step, value in zip(steps, values, strict=True):
                if self._run.step <= step and (up_to is None or step <= up_to):
                    past[step][name] = value
        for step in sorted(past):
            self._run.log(past[step], step=step)

    def _begun(self, chosen: TrackerSettings) -> Any:
        if chosen.wandb_mode == "offline":
            return self._init(chosen, "offline")
        try:
            self._require_key()
            return self._init(chosen, "online")
        except Exception as error:  # W&B's: no key, no network, no answer
            said = " ".join(str(error).split())[:_SHOWN]
            self._close(exit_code=1)  # else its process says that the run's id is in use
            run = self._init(chosen, "offline")
            send = shlex.quote(str(Path(run.dir).parent))
            log.warning("wandb: no server (%s); it is written offline, send it with: wandb sync %s", said, send)
            return run

    def _require_key(self) -> None:
        """See that there is a key, without asking for one: nobody looks at a thread's question."""
        try:
            there = bool(self._wandb.login(prompt=False, verify=False))
        except TypeError:  # an older one
            there = bool(self._wandb.api.api_key)
        if not there:
            raise UserError("no key: wandb login, or WANDB_API_KEY in the environment of the job")

    def _init(self, chosen: TrackerSettings, mode: str) -> Any:
        about, wandb = self._about, self._wandb
        with _lock:
            _live.add(id(self))
        package = about.labels.get("target", "").partition(":")[0].partition(".")[0]
        return wandb.init(
            project=chosen.wandb_project or package or "seemore",
            entity=chosen.wandb_entity,
            group=chosen.wandb_group or about.rundir.path.parent.name,
            id=about.rundir.path.name,
            name=about.rundir.path.name,
            resume="allow",
            reinit="create_new",  # not the run of an earlier member that is still being sent
            dir=str(about.rundir.wandb.parent),
            config={**about.config, "launcher": dict(about.labels)},
            mode=mode,
            settings=self._settings,
        )


def _quiet(wandb: Any) -> Any:
    """Settings that have it say nothing on the terminal, never wait for a server for long, and keep no command line.

    What was typed may hold what is redacted in the config.
    """
    wanted = {"console": "off", "silent": True, "init_timeout": _REACHED_WITHIN_S, "finish_timeout": _SENT_WITHIN_S}
    wanted["x_disable_meta"] = True
    settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})
    wandb.setup(settings)
    return settings
