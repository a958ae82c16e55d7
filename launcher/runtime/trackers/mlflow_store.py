"""Where MLflow keeps runs: its store opened without races, the experiment, the one parent run of a sweep."""

from __future__ import annotations

import logging
import os.path
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from launcher.runtime.errors import UserError
from launcher.runtime.files import write_json
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.sweepdir import SweepDir
from launcher.runtime.trackers import About
from launcher.runtime.tracking_uri import database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"
EXTRA = 'pip install "seemore-launcher[mlflow]"'
_OF_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""What MLflow's pages take an experiment for: models that are trained."""
_LOCK_S = 120.0
"""Longest wait for who makes the store: it takes some ten seconds on a slow disk."""


@dataclass(frozen=True)
class Place:
    """Which store, and which experiment of it."""

    uri: str
    experiment: str
    artifacts: str | None = None
    """URI under which an experiment that is made here keeps files; None: the server decides."""


def place_of(chosen: TrackerSettings, about: About) -> Place:
    """What ``chosen`` says: by default SQLite beside the sweeps, and an experiment named like the task's package."""
    root = SweepDir(about.rundir.path.parent).path.parent.absolute()
    uri = chosen.mlflow_uri or f"sqlite:///{root / 'mlflow.db'}"
    package = about.labels.get("target", "").partition(":")[0].partition(".")[0]
    file = database_file(uri)
    artifacts = Path(os.path.abspath(file)).with_name("mlflow-artifacts").as_uri() if file else None  # noqa: PTH100
    return Place(uri, chosen.mlflow_experiment or package or "seemore", artifacts)


def open_client(place: Place) -> MlflowClient:
    """A client of a store that answers; its tables are there, whoever comes first.

    Raises:
        UserError: MLflow is not installed.
        Exception: MLflow's own, where the store cannot be reached.
    """
    _hush()
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        if error.name != "mlflow":
            raise
        raise UserError(f"MLflow is not installed here: {EXTRA}") from None
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # tables made, tries to come: not on our terminal
        logging.getLogger(name).setLevel(logging.ERROR)
    with _making(place.uri):  # MLflow's own first use breaks where several come at once
        client = MlflowClient(tracking_uri=place.uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client: MlflowClient, place: Place) -> str:
    """The id of the experiment, which is made where it is missing.

    Raises:
        UserError: somebody has deleted it.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        artifacts = place.artifacts and f"{place.artifacts}/{place.experiment}"
        try:
            return str(client.create_experiment(place.experiment, artifacts, _OF_TRAINING))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(place.experiment)
    if found is None or found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow's experiment {place.experiment!r} is deleted: restore it, or choose tracker.mlflow_experiment=…"
        )
    return str(found.experiment_id)


def parent_run(client: MlflowClient, place: Place, rundir: RunDir) -> str | None:
    """The run that stands for the sweep of ``rundir``, made once for all its members; None: it is alone there."""
    sweep = SweepDir(rundir.path.parent)
    if not sweep.members.exists() and len(sweep.list_runs()) < 2:
        return None
    file = RunDir(sweep.path)
    with FileLock(sweep.mlflow_lock, timeout=_LOCK_S):
        known = file.read(sweep.mlflow) or {}
        if known.get("uri") == place.uri and is_there(client, str(known["run"])):
            return str(known["run"])
        tags = {"sweep": sweep.path.name, "kind": "sweep", "folder": str(sweep.path.absolute())}
        run = client.create_run(experiment_id(client, place), now_ms(), tags, sweep.path.name)
        parent = str(run.info.run_id)
        client.set_terminated(parent, "FINISHED")  # it stands for them; nobody knows when the last one is over
        write_json(sweep.mlflow, {"uri": place.uri, "run": parent})
        for sibling in map(sweep.run, sweep.list_runs()):  # who began before it was known that this is a sweep
            other = sibling.read(sibling.mlflow) or {}
            if other.get("uri") == place.uri and is_there(client, str(other.get("run"))):
                client.set_tag(str(other["run"]), PARENT, parent)
    return parent


def is_there(client: MlflowClient, run: str) -> bool:
    """Whether the store has ``run``, and nobody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


def now_ms() -> int:
    """Milliseconds since the epoch, as MLflow counts."""
    return int(time.time() * 1000)


def _making(uri: str) -> AbstractContextManager[Any]:
    file = database_file(uri)
    if file is None:
        return nullcontext()
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock", timeout=_LOCK_S)


def _hush() -> None:
    """Leave out what MLflow's dependencies say to its developers. Filters, not a context: that is no thread's own."""
    for module in ("mlflow", "sqlalchemy", "alembic", "pydantic", "google"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
