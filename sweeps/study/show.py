"""What a study has found: its state in a few lines, the best trial as overrides to paste, and how to look at it."""

from __future__ import annotations

import shlex
from collections import Counter

from launcher.points import text_of
from launcher.runtime.errors import UserError
from sweeps.study.definition import Definition
from sweeps.study.folder import StudyDir
from sweeps.study.storage import open_study
from sweeps.study.trials import REASON


def show(folder: StudyDir) -> None:
    """Print the state of a study on stdout.

    Raises:
        UserError: there is none.
    """
    from optuna.trial import TrialState

    definition = folder.read()
    if definition is None:
        raise UserError(f"{folder.path}: holds no study; begin it without --show")
    folder.require_storage(definition)
    with folder.locked():
        study = open_study(folder, definition)
        limits = folder.read_limits()
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state.name for trial in trials)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none yet"
    print(f"{folder.path}: {len(trials)} of {limits.n_trials} trials: {told}")
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if done:
        best = study.best_trial
        run = folder.read_trial(best.number)
        print(f"best: trial {best.number}, {definition.goal.metric} = {best.value:.6g}")
        print("  " + shlex.join(f"{key}={text_of(value)}" for key, value in best.params.items()))
        if run is not None:
            print(f"  {run.plan.rundir.path}")
    failed = Counter(str(t.user_attrs.get(REASON)) for t in trials if t.state == TrialState.FAIL)
    for reason, count in failed.most_common(3):
        print(f"{count} failed: {reason}")
    print(f"look at it:  {dashboard(folder, definition)}")


def dashboard(folder: StudyDir, definition: Definition) -> str:
    """The command that shows the study in a browser."""
    file = folder.journal if definition.settings.storage == "journal" else f"sqlite:///{folder.database}"
    return f"optuna-dashboard {shlex.quote(str(file))}"


def require_result(folder: StudyDir) -> None:
    """See that a study that is over has a trial with a value.

    Raises:
        UserError: all its trials failed; tells the commonest reason.
    """
    from optuna.trial import TrialState

    definition = folder.read()
    assert definition is not None
    with folder.locked():
        trials = open_study(folder, definition).get_trials(deepcopy=False)
    failed = Counter(str(t.user_attrs.get(REASON)) for t in trials if t.state == TrialState.FAIL)
    if failed and len(trials) == sum(failed.values()):
        raise UserError(f"{folder.path}: all {len(trials)} trials failed: {failed.most_common(1)[0][0]}")
