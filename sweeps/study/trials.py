"""The trials of a study, as a worker sees them: asked for, trained, told; nothing is lost with a worker that dies.

A trial's way: Optuna numbers and draws it; its plan is written down; it waits in the queue, is claimed and trained; its
value is told; it leaves the queue. After each of these steps a worker may be killed: whoever comes next finds out how
far it got. Asking and telling happen under the study's lock, so that ``n_trials`` is exact.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.points import text_of
from launcher.runtime.errors import UserError
from launcher.runtime.files import write_json
from launcher.runtime.pack.crew import Claim, Unreadable
from launcher.runtime.pack.queue import entry_name
from launcher.runtime.plan import Plan
from sweeps.study.definition import Definition
from sweeps.study.folder import StudyDir, TrialFile
from sweeps.study.storage import draw, make_sampler, open_study

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

PRUNED_AT, WHY_PRUNED, REASON, RUN = "pruned_at", "why_pruned", "reason", "run_id"
"""What trials remember (user attributes): the step at which they were pruned, why they failed, their run."""


class Trials:
    """A ``launcher.runtime.pack.crew.Source`` of trials."""

    def __init__(self, folder: StudyDir, definition: Definition, worker: str) -> None:
        self._folder, self._definition, self._worker = folder, definition, worker
        self._queue = folder.queue
        with folder.locked():
            self._study: Study = open_study(folder, definition)

    def claim(self, leave: frozenset[str]) -> Claim | None:
        """A trial that waits, one of a dead worker, or a new one; None: there is none, or the study is over.

        Raises:
            Unreadable: one cannot be run; others can.
        """
        while (entry := self._waiting(leave) or self._new()) is not None:
            trial = self._read(entry)
            if self._is_settled(trial):
                self._queue.end(entry, self._worker)
                continue
            return Claim(entry, trial.plan)
        return None

    def _read(self, entry: str) -> TrialFile:
        """What was decided for a claimed trial.

        Raises:
            Unreadable: that is gone or damaged; the trial has failed for it.
        """
        number = int(entry)
        try:
            if (trial := self._folder.read_trial(number)) is not None:
                return trial
            problem = f"{self._folder.trial(number)}: is gone; the trial cannot be run"
        except (KeyError, TypeError, UserError) as error:
            problem = f"{self._folder.trial(number)}: is damaged; the trial cannot be run ({error})"
        with self._folder.locked():
            if number < len(self._study.get_trials(deepcopy=False)):
                self._fail(number, problem)
        self._queue.end(entry, self._worker)
        raise Unreadable(problem)

    def give_back(self, claim: Claim) -> None:
        """Have it wait again, with its checkpoint."""
        self._queue.give_back(claim.entry, self._worker)

    def end(self, claim: Claim, code: int) -> None:
        """Tell what became of it."""
        with self._folder.locked():
            told = self._tell(int(claim.entry), claim.plan, final=True)
            self._tell_same()
        if told:
            self._queue.end(claim.entry, self._worker)
        else:  # another process trains the run: its value will be there
            self.give_back(claim)

    def is_cancelled(self, claim: Claim) -> bool:
        """Whether it is to be stopped for good."""
        return self._queue.cancellation(claim.entry).exists()

    def _waiting(self, leave: frozenset[str]) -> str | None:
        for dead in (False, True):
            if dead and not self._queue.give_back_of_dead():
                return None
            for entry in self._queue.list_waiting():
                if entry not in leave and self._queue.claim(entry, self._worker):
                    return entry
        return None

    def _new(self) -> str | None:
        """The entry of a trial that was begun and left by one who died, or of a new one; claimed."""
        with self._folder.locked():
            while True:
                self._tell_same()
                trials = self._study.get_trials(deepcopy=False)
                number = self._left(trials)
                if number is None:
                    number = self._ask(trials)
                if number is None:
                    return None
                if self._decide(number):
                    entry = entry_name(number)
                    (self._queue.waiting / entry).touch()
                    if self._queue.claim(entry, self._worker):
                        return entry

    def _left(self, trials: list[FrozenTrial]) -> int | None:
        """A running trial that stands nowhere in the queue: whoever asked for it died, as the lock is ours."""
        from optuna.trial import TrialState

        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        known = {*self._queue.list_waiting(), *self._queue.claims(), *self._queue.list_ended()} if running else set()
        for number in running:
            if entry_name(number) not in known:
                file = self._folder.read_trial(number)
                if file is None or file.same_as is None:
                    return number
        return None

    def _ask(self, trials: list[FrozenTrial]) -> int | None:
        """The number of a new trial; None: the study is over."""
        from optuna.trial import TrialState

        limits, now = self._folder.read_limits(), time.time()
        size = self._definition.grid_size
        limits = limits if size is None else replace(limits, n_trials=min(size, limits.n_trials))
        if not limits.is_open(sum(trial.state != TrialState.WAITING for trial in trials), now):
            return None
        if limits.began is None:
            self._folder.write_limits(replace(self._folder.read_limits(), began=now))
        with self._drawing(len(trials)):
            return self._study.ask().number

    def _decide(self, number: int) -> bool:
        """Draw what is not drawn, write the trial's plan down; False: it is over before it began, or takes another's.

        The caller holds the lock.
        """
        from optuna import Trial
        from optuna.trial import TrialState

        with self._drawing(number):
            trial = Trial(self._study, self._frozen(number)._trial_id)
            params = {axis.key: draw(trial, axis) for axis in self._definition.space}
        words = tuple(f"{key}={text_of(value)}" for key, value in params.items())
        try:
            plan = self._definition.recipe.plan_with(params, words)
        except UserError as error:
            trial.set_user_attr(REASON, str(error))
            self._study.tell(number, state=TrialState.FAIL)
            _say(f"trial {number}: FAIL: {error}")
            return False
        trial.set_user_attr(RUN, plan.run_id)
        plan.rundir.path.mkdir(parents=True, exist_ok=True)
        if not plan.rundir.plan.exists():  # its folder is its own before anybody trains it
            write_json(plan.rundir.plan, plan.to_json(), durable=False)
        same = self._first_with(plan.run_id, number)
        self._folder.write_trial(TrialFile(number, params, plan, same))
        self._folder.sweep.add_members([(plan.run_id, (*self._definition.overrides, *words))])
        return same is None

    @contextmanager
    def _drawing(self, number: int) -> Iterator[None]:
        """Have the study draw trial ``number`` in this block; a grid that is told of its last end would stop it."""
        before, self._study.sampler = self._study.sampler, make_sampler(self._definition, number)
        try:
            yield
        finally:
            self._study.sampler = before

    def _first_with(self, run_id: str, number: int) -> int | None:
        trials = self._study.get_trials(deepcopy=False)[:number]
        return next((trial.number for trial in trials if trial.user_attrs.get(RUN) == run_id), None)

    def _is_settled(self, file: TrialFile) -> bool:
        """Whether a claimed trial is over: its worker died before it could tell, or before it left the queue."""
        if self._frozen(file.number).state.is_finished():
            return True
        with self._folder.locked():
            told = self._tell(file.number, file.plan, final=False)
            self._tell_same()
        return told

    def _tell(self, number: int, plan: Plan, *, final: bool) -> bool:
        """Tell Optuna what became of a trial; False: it is not over.

        Args:
            final: nobody runs it again, so that what is not done has failed.
        """
        from optuna.trial import TrialState

        rundir, trial = plan.rundir, self._frozen(number)
        state = rundir.state()
        if state == "COMPLETED":
            return self._tell_value(number, plan)
        if PRUNED_AT in trial.user_attrs:
            if state != "CANCELLED":  # it was stopped or killed before it could say so
                rundir.say_state("CANCELLED", str(trial.user_attrs.get(WHY_PRUNED)))
            self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            return True
        if not final or state == "RUNNING":
            return False
        self._fail(number, str(rundir.read_status().get("reason") or state))
        return True

    def _tell_value(self, number: int, plan: Plan) -> bool:
        try:
            value = self._definition.goal.value(plan.rundir)
        except UserError as error:
            self._fail(number, str(error))
            return True
        if math.isfinite(value):
            self._study.tell(number, value, skip_if_finished=True)
        else:
            self._fail(number, f"{self._definition.goal.metric} is {value}")
        return True

    def _fail(self, number: int, reason: str) -> None:
        from optuna.trial import TrialState

        trial = self._frozen(number)
        if not trial.state.is_finished():
            self._study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _tell_same(self) -> None:
        """Trials that have an earlier one's run take its end; the caller holds the lock."""
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False)
        firsts: dict[Any, FrozenTrial] = {}
        for trial in trials:
            run_id = trial.user_attrs.get(RUN)
            first = firsts.setdefault(run_id, trial) if run_id is not None else trial
            if first is trial or trial.state != TrialState.RUNNING or not first.state.is_finished():
                continue
            if first.state == TrialState.COMPLETE:
                self._study.tell(trial.number, first.value, skip_if_finished=True)
            elif first.state == TrialState.PRUNED:
                self._study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
            else:
                self._fail(trial.number, str(_attributes(first).get(REASON)))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _attributes(trial: FrozenTrial) -> Mapping[str, Any]:
    return trial.user_attrs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
