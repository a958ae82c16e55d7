"""The HParams table of a whole sweep, asked of a real TensorBoard as its own page asks for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from launcher.runtime.rundir import RunDir
from launcher.runtime.trackers.tensorboard import TensorBoard

RUNS = {
    "aaaaaaaaaaaa": ({"optim": {"lr": 0.5, "kind": "adamw"}, "flip": True, "note": None}, 1.5),
    "bbbbbbbbbbbb": ({"optim": {"lr": 1, "kind": "sgd"}, "flip": False, "note": "a note"}, 1.25),
    "cccccccccccc": ({"optim": {"lr": "auto", "kind": "sgd"}, "flip": True, "sizes": [1, 2]}, 1.75),
}
"""Of each run its science, of which no two have the same types, and its best validation loss."""
_PATIENCE_S = 120


@pytest.fixture
def sweep(tmp_path):
    for name, (science, loss) in RUNS.items():
        board = TensorBoard(RunDir(tmp_path / name), {}, science, 0)
        board.log({"val/loss": loss}, 1)
        board.finish({"train_loss": 2.0, "best_val_loss": loss})
    return tmp_path


@pytest.fixture
def served(sweep):
    """``served(name, body)``: what ``tensorboard --logdir SWEEP`` answers at ``/data/plugin/hparams/NAME``."""
    words = ["tensorboard.main", "--logdir", str(sweep), "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True) as process:
        said = iter(process.stderr.readline, "")
        address = next(found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))

        def ask(name, body):
            request = urllib.request.Request(
                f"{address}data/plugin/hparams/{name}", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        yield ask
        process.terminate()


def session_groups(served):
    """All rows of the table, once TensorBoard has read all runs: it reads in the background, and tells nobody."""
    names = [{"hparam": name} for name in ("optim.lr", "optim.kind", "flip", "note", "sizes")]
    names.append({"metric": {"group": "", "tag": "final/best_val_loss"}})
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    body = {"colParams": names, "allowedStatuses": states, "startIndex": 0, "sliceSize": 100}
    until = time.monotonic() + _PATIENCE_S
    while True:
        groups = served("session_groups", body).get("sessionGroups", [])
        if len(groups) >= len(RUNS) or time.monotonic() > until:
            return groups
        time.sleep(0.2)


def test_every_run_of_a_sweep_is_a_row_whatever_the_types_of_its_settings(served):
    rows = {}
    for group in session_groups(served):
        finals = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        rows[group["sessions"][0]["name"].removesuffix("/tb")] = (group["hparams"], finals["final/best_val_loss"])
    losses = {name: loss for name, (_, loss) in RUNS.items()}
    assert {name: loss for name, (_, loss) in rows.items()} == losses
    assert [rows[name][0]["optim.lr"] for name in RUNS] == [0.5, 1, "auto"]
    assert [rows[name][0]["flip"] for name in RUNS] == [True, False, True]
    assert [rows[name][0].get("note") for name in RUNS] == ["null", "a note", None]
    assert rows["cccccccccccc"][0]["sizes"] == "[1, 2]"


def test_and_the_experiment_knows_the_settings_and_the_final_numbers(served):
    assert len(session_groups(served)) == len(RUNS)
    told = served("experiment", {})
    # TensorBoard takes its columns from the run that it reads first: what another alone has is in its row only.
    assert {info["name"] for info in told["hparamInfos"]} >= {"optim.lr", "optim.kind", "flip"}
    assert "final/best_val_loss" in {info["name"]["tag"] for info in told["metricInfos"]}
