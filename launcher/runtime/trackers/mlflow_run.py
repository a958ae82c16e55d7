"""MLflow: one run of its store for each run of ours, through all its attempts; what is missing is made up for.

Numbers go in batches. Those of steps that stand there already are left out, as MLflow can take nothing back: where a
run was killed and does some steps again, the first of their numbers stay.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from launcher.runtime.curves import read_series
from launcher.runtime.files import json_text, write_json
from launcher.runtime.sections import flat
from launcher.runtime.trackers import About
from launcher.runtime.trackers.mlflow_store import (
    PARENT,
    Place,
    experiment_id,
    is_there,
    now_ms,
    open_client,
    parent_run,
)
from launcher.runtime.trackers.values import Value, as_key, finals

if TYPE_CHECKING:
    from mlflow.entities import Metric

T = TypeVar("T")

_STATUS = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
"""MLflow's word for a state; in any other one a run goes on, or may."""
_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""Of one request (MLflow's REST API, "Log Batch")."""
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000
"""Characters (MLflow, ``MAX_PARAM_VAL_LENGTH``, ``MAX_TAG_VAL_LENGTH``)."""
_PICTURE = re.compile(r"(?P<name>.+?)[%+]step[%+](?P<step>\d+)[%+]")
"""Name of a picture's file; releases differ in what stands between, and for a slash."""


class MlflowRun:
    """A run in MLflow, found again where an earlier attempt, or ``launcher sync``, has made it."""

    def __init__(self, about: About, place: Place, *, go_on: bool = True) -> None:
        """Find or make it; parameters and what an earlier attempt could not record are written.

        Args:
            go_on: the run begins or goes on now: what the ledger holds beyond ``about.step`` is no part of it.
        """
        self._about, self._rundir = about, about.rundir
        self._live = go_on
        self.recorded = 0
        """Numbers, parameters and files that were written."""
        self._client = open_client(place)
        self._metrics: list[Metric] = []
        self._id, is_new = self._found_or_made(place)
        self._known: defaultdict[str, set[int]] = defaultdict(set)
        if go_on and not is_new:
            self._client.update_run(self._id, status="RUNNING")
        self._describe(place)
        if go_on and (not is_new or about.step):
            self._make_up(about.step)
        self._files([self._rundir.config])

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Gather numbers; pictures go into MLflow's grid of images, texts into files, lines into tags."""
        for name, value in values.items():
            key = as_key(name)
            if isinstance(value, str) and "\n" not in value:  # often one each log: the newest is the one to see
                self._client.set_tag(self._id, key, value[:_LONGEST_TAG])
            elif isinstance(value, str):
                self._client.log_text(self._id, value, f"texts/{key}.step-{step:06d}.txt")
            elif isinstance(value, np.ndarray):
                if step not in self._known[f"images/{key}"]:
                    self._client.log_image(self._id, value, key=key, step=step, synchronous=True)
                    self._known[f"images/{key}"].add(step)
            else:
                self._gather(key, float(value), step, now_ms())
        if len(self._metrics) >= _MOST_METRICS:
            self.flush()

    def flush(self) -> None:
        """Write the numbers that were gathered. Those of a request that fails are made up for by ``catch_up``."""
        metrics, self._metrics = self._metrics, []
        for batch in _batches(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=batch)
            self.recorded += len(batch)

    def catch_up(self) -> bool:
        """Record what ``metrics.csv`` has and MLflow has not; whether there is one."""
        self._metrics = []
        self._make_up(None)
        return self._rundir.metrics.exists()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the last numbers, the files of the run directory, and how it ended; a run that stopped goes on."""
        self.flush()
        state = str(summary.get("status") or self._rundir.state())
        self._final(summary)
        if summary:
            self._client.log_text(self._id, json_text(summary), self._rundir.summary.name)
            self._files([self._rundir.loss_curve, self._rundir.timing_curve])
        self._end(state, str(summary.get("reason", "")))

    def sync(self) -> None:
        """Bring all of it to what the run directory says now: for a run that nobody trains."""
        self._make_up(None)
        summary = self._rundir.read(self._rundir.summary) or {}
        self._final(summary)
        rundir = self._rundir
        self._files([rundir.config, rundir.summary, rundir.loss_curve, rundir.timing_curve])
        state = str(self._rundir.state())
        info = self._client.get_run(self._id).info
        if _STATUS.get(state, info.status) != info.status:
            self._end(state, str(summary.get("reason", "")))
            self.recorded += 1

    def _found_or_made(self, place: Place) -> tuple[str, bool]:
        """Id of the run, and whether it is new. A name of its own goes on disk first: who is killed makes no second."""
        file = self._rundir.mlflow
        known = self._rundir.read(file) or {}
        if known.get("uri") != place.uri:
            known = {"uri": place.uri, "token": secrets.token_hex(8)}
            write_json(file, known)
        if known.get("run") and is_there(self._client, str(known["run"])):
            return str(known["run"]), False
        experiment = experiment_id(self._client, place)
        found = self._client.search_runs([experiment], f"tags.token = '{known['token']}'", max_results=1)
        if found:
            run, is_new = found[0], False
        else:
            tags = {"token": str(known["token"]), "run_id": self._rundir.path.name}
            run, is_new = self._client.create_run(experiment, now_ms(), tags, self._rundir.path.name), True
        write_json(file, known | {"run": run.info.run_id})
        return str(run.info.run_id), is_new

    def _describe(self, place: Place) -> None:
        """Tags, and the parameters that are not there yet: MLflow lets none be changed."""
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(self._id).data
        labels = dict(self._about.labels)
        tags = {"sweep": self._rundir.path.parent.name, "folder": str(self._rundir.path.absolute()), **labels}
        tags |= {"state": "RUNNING"} if self._live else {}
        if commit := labels.get("git_sha"):
            tags["mlflow.source.git.commit"] = commit
        if target := labels.get("target"):
            tags["mlflow.source.name"] = target
        if parent := parent_run(self._client, place, self._rundir):
            tags[PARENT] = parent
        new = [RunTag(key, value) for key, value in tags.items() if there.tags.get(key) != value]
        texts = {as_key(key): str(value)[:_LONGEST_PARAM] for key, value in flat(self._about.config).items()}
        params = [Param(key, text) for key, text in texts.items() if key not in there.params]
        if new:
            self._client.log_batch(self._id, tags=new)
        for batch in _batches(params, _MOST_PARAMS):
            self._client.log_batch(self._id, params=batch)
            self.recorded += len(batch)

    def _gather(self, key: str, value: float, step: int, time_ms: int) -> None:
        from mlflow.entities import Metric

        if step not in self._known[key]:
            self._known[key].add(step)
            self._metrics.append(Metric(key, value, time_ms, step))

    def _make_up(self, up_to: int | None) -> None:
        """Learn which steps MLflow has, and record those of ``metrics.csv`` that it has not, up to a step."""
        self._known.clear()
        for key in self._client.get_run(self._id).data.metrics:
            self._known[key] = {metric.step for metric in self._client.get_metric_history(self._id, key)}
        for key, at in self._pictures():
            self._known[f"images/{key}"].add(at)
        if not self._rundir.metrics.exists():
            return
        time_ms = int(self._rundir.metrics.stat().st_mtime * 1000)
        for name, (steps, values) in read_series(self._rundir.metrics).items():
            for step, value in zip(steps, values, strict=True):
                if up_to is None or step <= up_to:
                    self._gather(as_key(name), value, step, time_ms)
        self.flush()

    def _pictures(self) -> Iterator[tuple[str, int]]:
        """Name and step of each picture that is there (``MlflowClient.log_image`` names files so)."""
        for file in self._client.list_artifacts(self._id, "images"):
            if found := _PICTURE.match(Path(file.path).name):
                yield re.sub("[#~]", "/", found["name"]), int(found["step"])

    def _final(self, summary: Mapping[str, Any]) -> None:
        for key, value in finals(summary).items():
            self._gather(key, value, int(summary.get("step") or 0), now_ms())
        self.flush()

    def _files(self, paths: Sequence[Path]) -> None:
        """Upload those that are here and not there, or of another size there."""
        sizes = {file.path: file.file_size for file in self._client.list_artifacts(self._id)}
        for path in paths:
            if path.exists() and sizes.get(path.name) != path.stat().st_size:
                self._client.log_artifact(self._id, str(path))
                self.recorded += 1

    def _end(self, state: str, reason: str) -> None:
        for key, value in {"state": state, "reason": reason[:_LONGEST_TAG]}.items():
            if value:
                self._client.set_tag(self._id, key, value)
        if state in _STATUS:
            self._client.set_terminated(self._id, _STATUS[state])


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
