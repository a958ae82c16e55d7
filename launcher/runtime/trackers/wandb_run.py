"""Weights & Biases: a run whose id is ours, through all its attempts; without a server it writes files to be sent."""

from __future__ import annotations

import logging
import shlex
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.runtime.errors import UserError
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import About
from launcher.runtime.trackers.values import Value

log = logging.getLogger(__name__)

EXTRA = 'pip install "seemore-launcher[wandb]"'
_REACHED_WITHIN_S = 10.0
"""How long a server may take to answer before the run is written to files instead."""
_FINALS = ("train_loss", "val_loss", "best_val_loss", "samples_per_s", "weights_sha256")


class WandbRun:
    """A run of W&B. It takes steps in rising order only: what is done again after a kill it leaves out itself."""

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
        self._wandb, self._about = wandb, about
        self._run = self._begun(chosen)
        self._run.save(str(about.rundir.config), base_path=str(about.rundir.path), policy="now")

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
        finals = {f"final/{name}": summary[name] for name in _FINALS if summary.get(name) is not None}
        self._run.summary.update(finals)
        done = summary.get("status") == "COMPLETED"
        if not summary and self._about.rundir.state() == "PREEMPTED":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if done else 1)

    def _begun(self, chosen: TrackerSettings) -> Any:
        if chosen.wandb_mode == "offline":
            return self._init(chosen, "offline")
        try:
            return self._init(chosen, "online")
        except Exception as error:  # W&B's: no key, no network, no answer
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            run = self._init(chosen, "offline")
            folder = shlex.quote(str(self._about.rundir.wandb))
            log.warning("wandb: cannot be reached (%s); the run is written offline; send it with: wandb sync %s/offline-run-*", said, folder)
            return run

    def _init(self, chosen: TrackerSettings, mode: str) -> Any:
        about, wandb = self._about, self._wandb
        package = about.labels.get("target", "").partition(":")[0].partition(".")[0]
        settings = wandb.Settings(console="off", silent=True, init_timeout=_REACHED_WITHIN_S)
        return wandb.init(
            project=chosen.wandb_project or package or "seemore",
            entity=chosen.wandb_entity,
            group=chosen.wandb_group or about.rundir.path.parent.name,
            id=about.rundir.path.name,
            name=about.rundir.path.name,
            resume="allow",
            dir=str(about.rundir.path),
            config={**about.config, "launcher": dict(about.labels)},
            mode=mode,
            settings=settings,
        )
