"""MLflow behind a real server, one that is away, and one that never answers: whole runs, and what is sent later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.__main__ import main
from launcher.runtime.errors import ExitCode
from launcher.runtime.trackers.mlflow_store import Place
from tests.launcher.runtime.toy_job import STEPS, toy_job
from tests.launcher.runtime.trackers.stores import (
    artifacts,
    free_port,
    losses,
    mlflow_server,
    run_of,
    silent_server,
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """As ``set_defaults`` does, and quicker."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr("launcher.runtime.trackers.queued._STOP_S", 60.0)  # a slow machine is no part of it


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


def planned(tmp_path, uri, csv=True, wait_s=60.0, **changes):
    plan = toy_job(tmp_path, **changes)
    tracker = {"csv": csv, "mlflow": True, "mlflow_uri": uri, "mlflow_experiment": "toys", "wait_s": wait_s}
    return replace(plan, execution=plan.execution | {"tracker": tracker})


def steps(place, rundir):
    return [step for step, _ in losses(place, run_of(place, rundir).info.run_id)]


@pytest.mark.slow
def test_a_run_is_recorded_whole_and_goes_on_as_the_same_run(server, tmp_path, run):
    plan = planned(tmp_path, server, end="stop", at=3)
    place = Place(server, "toys")
    assert run(plan).code == ExitCode.STOPPED_SAVED
    assert run_of(place, plan.rundir).info.status == "RUNNING" and steps(place, plan.rundir) == [1, 2, 3]
    assert run(planned(tmp_path, server)).code == ExitCode.DONE
    found = run_of(place, plan.rundir)
    assert found.info.status == "FINISHED" and steps(place, plan.rundir) == list(range(1, STEPS + 1))
    assert found.data.params["lr"] == "0.01" and found.data.params["hub_token"] == "<redacted>"
    assert {"loss_curve.png", "timing_curve.png", "summary.json", "config.yaml"} <= artifacts(place, found.info.run_id)
    assert "mlflow" not in plan.rundir.log(0).read_text(), "nothing went wrong, nothing was said"


@pytest.mark.slow
def test_a_run_that_fails_is_failed_there_with_its_reason(server, tmp_path, run):
    plan = planned(tmp_path, server, end="diverge", at=3, lr=0.02)
    with pytest.raises(Exception, match="the loss is nan"):
        run(plan)
    found = run_of(Place(server, "toys"), plan.rundir)
    assert found.info.status == "FAILED" and "the loss is nan" in found.data.tags["reason"]


@pytest.mark.slow
def test_a_server_that_is_away_costs_nothing_and_is_given_all_of_it_later(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    plan = planned(tmp_path, uri)
    assert run(plan).code == ExitCode.DONE
    said = [line for line in plan.rundir.log(0).read_text().splitlines() if "mlflow:" in line]
    assert len(said) == 2 and all(f"python -m launcher sync {plan.rundir.path}" in line for line in said)
    assert "training goes on without it" in said[0] and "not all is recorded" in said[1]
    assert main(["sync", str(plan.rundir.path)]) == ExitCode.USER_ERROR  # it still is
    assert uri in capsys.readouterr().err
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", port):
        place = Place(uri, "toys")
        assert main(["sync", "runs"]) == ExitCode.DONE
        assert "values and files recorded" in capsys.readouterr().out
        found = run_of(place, plan.rundir)
        before = (steps(place, plan.rundir), found.data, artifacts(place, found.info.run_id))
        assert before[0] == list(range(1, STEPS + 1)) and found.info.status == "FINISHED"
        assert found.data.params["lr"] == "0.01" and found.data.metrics["final/val_loss"] == 1 / STEPS
        assert {"loss_curve.png", "timing_curve.png", "summary.json", "config.yaml"} <= before[2]
        assert main(["sync", "runs"]) == ExitCode.DONE
        assert "mlflow: nothing was missing" in capsys.readouterr().out
        again = run_of(place, plan.rundir)
        assert (steps(place, plan.rundir), artifacts(place, again.info.run_id)) == (before[0], before[2])
        assert again.data.to_dictionary() == before[1].to_dictionary()


@pytest.mark.slow
def test_a_server_that_goes_away_while_the_run_goes_on_is_made_up_for_at_its_end(tmp_path, run):
    """It comes back before the end: what it missed in between is recorded from the run's own ledger."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with mlflow_server(tmp_path / "first", port):
        assert run(planned(tmp_path, uri, end="stop", at=2)).code == ExitCode.STOPPED_SAVED
    stopped_again = planned(tmp_path, uri, end="stop", at=4)
    assert run(stopped_again).code == ExitCode.STOPPED_SAVED  # nobody is there: 3 and 4 are not recorded
    with mlflow_server(tmp_path / "first", port):
        assert run(planned(tmp_path, uri)).code == ExitCode.DONE
        assert steps(Place(uri, "toys"), stopped_again.rundir) == list(range(1, STEPS + 1))


def test_a_server_that_never_answers_keeps_no_run_from_its_end(tmp_path, run):
    with silent_server() as (uri, asked):
        plan = planned(tmp_path, uri, wait_s=0.5)
        assert run(plan).code == ExitCode.DONE
        assert asked.wait(60)
    text = plan.rundir.log(0).read_text()
    assert "mlflow: not all is recorded (did not come to an end in time" in text
    assert f"python -m launcher sync {plan.rundir.path}" in text and plan.rundir.state() == "COMPLETED"
