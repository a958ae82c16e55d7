"""TensorBoard: scalars, pictures, the config as text, and HParams in the same run."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.runtime.rundir import RunDir
from launcher.runtime.sections import flat
from launcher.runtime.trackers.values import Value, finals

with warnings.catch_warnings():  # tensorboard probes for TensorFlow and complains of its own protobuf
    warnings.simplefilter("ignore")
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Event files under ``tb/``; a run that goes on drops what it had written beyond its step (``purge_step``)."""

    def __init__(self, rundir: RunDir, config: Mapping[str, Any], science: Mapping[str, Any], step: int) -> None:
        self._science = science
        _await_next_second(rundir.tensorboard)
        # At step 0 too: it drops what an attempt without a checkpoint left, and TensorBoard heeds only later marks.
        self._writer = SummaryWriter(str(rundir.tensorboard), purge_step=step + 1 if step else 0, flush_secs=10)
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", step)

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Numbers as scalars, arrays as pictures, text as text."""
        for name, value in values.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, step)
            elif isinstance(value, np.ndarray):
                self._writer.add_image(name, value, step, dataformats="HWC")
            else:
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Have it in the file, which a TensorBoard that looks on reads."""
        self._writer.flush()

    def catch_up(self) -> bool:
        """Nothing is made up for: an event file only grows."""
        return False

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the row of the HParams table: science against the final numbers."""
        if numbers := finals(summary):
            # run_name ".": the same run, not a sub-run named by the clock
            self._writer.add_hparams(_hparams(self._science), numbers, run_name=".")
        self._writer.close()


def _await_next_second(folder: Path) -> None:
    """Where an earlier attempt began in this very second, let it pass.

    Event files are read in the order of their names, which tell the second, and then the process (tensorboard's
    ``EventFileWriter``): what this attempt writes would be taken for the older part.
    """
    now = time.time()
    if any(f".{int(now):010d}." in path.name for path in folder.glob("events.*")):
        time.sleep(1 - now % 1)


def _hparams(science: Mapping[str, Any]) -> dict[str, int | float | str | bool]:
    """HParams takes numbers, texts and booleans only: the rest as text."""
    return {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in flat(science).items()}
