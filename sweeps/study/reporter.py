"""What a trial's own process tells Optuna while it trains, and how it learns that it is pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.runtime.signals import StopFlag
from sweeps.study.definition import Definition
from sweeps.study.folder import StudyDir
from sweeps.study.storage import make_pruner, open_study
from sweeps.study.trials import PRUNED_AT, WHY_PRUNED

if TYPE_CHECKING:
    from optuna import Study


class Reporter:
    """A listener (``launcher.runtime.job.run_job``): reports the study's curve, and ends a trial that is pruned."""

    def __init__(self, folder: StudyDir, definition: Definition, number: int, stop: StopFlag) -> None:
        self._folder, self._definition, self._number, self._stop = folder, definition, number, stop
        self._study: Study | None = None
        self._reported: set[int] = set()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Report the curve as of ``step``, once: a trial that goes on from a checkpoint logs some steps again."""
        value = values.get(self._definition.curve or "")
        if not isinstance(value, int | float) or not math.isfinite(value):
            return
        study = self._opened()
        storage, trial = study._storage, self._trial(study)
        if step not in self._reported:
            self._reported.add(step)
            storage.set_trial_intermediate_value(trial, step, float(value))
        frozen = storage.get_trial(trial)
        if self._stop.reason is None and study.pruner.prune(study, frozen):
            settings = self._definition.settings
            why = f"pruned at step {step}: {self._definition.curve} {value:.6g} is behind the {settings.pruner}"
            storage.set_trial_user_attr(trial, WHY_PRUNED, why)
            storage.set_trial_user_attr(trial, PRUNED_AT, step)
            self._stop.end(why)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing is left to be said: whoever runs the trial tells its value."""

    def _opened(self) -> Study:
        """A storage of this process's own: the one that it was forked with is its parent's."""
        if self._study is None:
            with self._folder.locked():
                self._study = open_study(self._folder, self._definition)
            self._study.pruner = make_pruner(self._definition.settings)
            trial = self._study._storage.get_trial(self._trial(self._study))
            self._reported = set(trial.intermediate_values)
        return self._study

    def _trial(self, study: Study) -> int:
        return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, self._number)
