"""``data.stage``: trained from a copy on the node's own disk, to the same bits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import make_plan
from launcher.runtime import stage as staging
from launcher.runtime.errors import Stopped, UserError
from launcher.runtime.job import run_job
from launcher.runtime.signals import StopFlag
from tests.conftest import PHOTOS, small
from tests.vlm.conftest import run_ranks
from vlm.data import cache

WORDS = ("precision=fp32", "tracker=csv", "tracker.curves=false", "trainer.max_steps=2", "throughput.peak_tflops=null")


@pytest.fixture
def plan(values, tmp_path):
    """``plan("data.stage=…")``: a run of three steps; each named ``name`` has a folder of its own."""

    def made(*overrides, name="run"):
        return make_plan(values(*small(*WORDS, *overrides)), default_name=name, cwd=tmp_path)

    return made


@pytest.fixture
def opened(monkeypatch):
    """The folders that decoded rows were read from."""
    seen: list[Path] = []
    real = cache._open

    def spied(folder, rows, size):
        seen.append(folder)
        return real(folder, rows, size)

    monkeypatch.setattr(cache, "_open", spied)
    return seen


def summary(plan) -> dict[str, Any]:
    return json.loads(plan.rundir.summary.read_text())


@pytest.mark.parametrize(
    "data", [(), ("data=csv", f"data.path={PHOTOS}", "trainer.batch_size=2", "model.positions=2000")]
)
def test_the_same_bits_with_and_without_and_read_from_the_copy(plan, opened, tmp_path, data):
    plain, staged = plan(*data, name="plain"), plan(*data, "data.stage=$NODE_DISK/x", name="staged")
    assert plain.run_id == staged.run_id, "no part of what a run is"
    run_job(plain, {}, StopFlag())
    run_job(staged, {"NODE_DISK": str(tmp_path / "node")}, StopFlag())
    assert not opened[0].is_relative_to(tmp_path / "node") and opened[1].is_relative_to(tmp_path / "node" / "x")
    names = ("weights_sha256", "val_loss", "train_loss", "val_exact_match")
    assert [summary(plain)[n] for n in names] == [summary(staged)[n] for n in names]


def test_two_ranks_of_a_node_share_one_copy(plan, tmp_path):
    one = plan("data.stage=/")
    shared = plan(f"data.stage={tmp_path}/node", "hardware.micro_batch=2")
    run_ranks(shared, 2)
    assert summary(shared)["status"] == "COMPLETED" and one.run_id == shared.run_id
    copies = [path for path in (tmp_path / "node" / f"seemore-{os.getuid()}").iterdir() if path.is_dir()]
    logs = [shared.rundir.log(rank).read_text() for rank in (0, 1)]
    assert len(copies) == 1 and sum(log.count("once for this node") for log in logs) == 1


def test_a_variable_that_is_not_set_ends_the_run_in_one_line(plan):
    made = plan("data.stage=$SEEMORE_NOT_SET")
    with pytest.raises(UserError, match=r"^data.stage=\$SEEMORE_NOT_SET: SEEMORE_NOT_SET is not set on "):
        run_job(made, {}, StopFlag())
    assert made.rundir.state() == "FAILED" and "SEEMORE_NOT_SET" in made.rundir.read_status()["reason"]


@pytest.mark.parametrize("said", ["scratch", "''"])
def test_a_folder_that_is_no_absolute_one_is_refused_when_planned(plan, said):
    with pytest.raises(UserError, match="should begin with a slash or a variable"):
        plan(f"data.stage={said}")


def test_a_disk_that_cannot_hold_it_costs_nothing_but_a_word(plan, opened, tmp_path):
    (tmp_path / "node").touch()
    made = plan(f"data.stage={tmp_path}/node")
    assert run_job(made, {}, StopFlag()).state == "COMPLETED"
    assert "is not staged in" in made.rundir.log(0).read_text() and opened[0].is_relative_to(tmp_path / "cache")


def test_a_stop_while_data_are_copied_leaves_nothing_and_the_run_goes_on(plan, tmp_path, monkeypatch):
    made, stop = plan(f"data.stage={tmp_path}/node"), StopFlag()
    chunks = staging._chunks

    def asked(descriptor, poll):
        stop.signal = signal.SIGTERM
        yield from chunks(descriptor, poll)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_chunks", asked)
        with pytest.raises(Stopped):
            run_job(made, {}, stop)
    left = list((tmp_path / "node" / f"seemore-{os.getuid()}").iterdir())
    assert [path.suffix for path in left] == [".lock"]
    assert run_job(made, {}, StopFlag()).state == "COMPLETED"
