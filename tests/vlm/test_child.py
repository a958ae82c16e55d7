"""A child run goes on from its parent's state as if it were one longer run, and needs its parent at its begin alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.plan import make_plan
from launcher.runtime.curves import read_series
from launcher.runtime.errors import UserError
from launcher.runtime.job import run_job
from launcher.runtime.plan import Parent, Plan
from launcher.runtime.signals import StopFlag
from tests.conftest import SMALL
from vlm.child import require_same_tokens
from vlm.optim import load_optimizer, make_optimizer
from vlm.precision import Precision
from vlm.trainer import Trainer

FIRST, LAST = 4, 9
RUN = (
    "schedule=constant", "precision=fp32", "tracker=csv", "model.dropout=0.3", "trainer.log_samples=true",
    "trainer.val_every=2", "trainer.captions=0", "checkpoint.keep_every=1", "tracker.curves=false",
    "checkpoint.best=false",     "throughput.peak_tflops=null",
)  # fmt: skip

Planned = Callable[..., Plan]


@pytest.fixture
def planned(values: Callable[..., dict[str, Any]], tmp_path: Path) -> Planned:
    """``planned("optim.lr=1", parent=…)``: the small run to ``LAST``, or as said."""

    def made(*overrides: str, parent: Parent | None = None) -> Plan:
        whole = values(*SMALL, *RUN, f"trainer.max_steps={LAST}", *overrides)
        return make_plan(whole, default_name="sweep", cwd=tmp_path, parent=parent)

    return made


def trained(plan: Plan) -> dict[str, Any]:
    """The run to its end; its summary."""
    outcome = run_job(plan, {}, StopFlag())
    assert outcome.state == "COMPLETED"
    return outcome.summary


def as_parent(plan: Plan) -> Parent:
    """What a child of the run begins from: its newest state."""
    newest = plan.rundir.list_checkpoints("step")[0]
    return Parent(
        run_id=plan.run_id, path=str(plan.rundir.path), step=plan.rundir.newest_step(), checkpoint=newest.name
    )


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and date of each file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def samples(plan: Plan) -> list[str]:
    """Rows of samples.csv."""
    return plan.rundir.samples.read_text().splitlines()[1:]


def test_parent_and_child_are_one_longer_run_to_the_bit(planned):
    first = planned(f"trainer.max_steps={FIRST}")
    trained(first)
    before = content(first.rundir.path)
    child = planned(parent=as_parent(first))
    whole = planned()
    assert len({first.run_id, child.run_id, whole.run_id}) == 3
    assert trained(child)["weights_sha256"] == trained(whole)["weights_sha256"]
    assert samples(first) + samples(child) == samples(whole)
    curves = {name: list(steps) for name, (steps, _) in read_series(child.rundir.metrics).items()}
    assert curves["train/loss"] == list(range(FIRST + 1, LAST + 1)) and min(curves["val/loss"]) > FIRST
    assert content(first.rundir.path) == before, "the parent's folder is read only"
    (start,) = [event for event in child.rundir.attempt_events() if event["event"] == "start"]
    assert (start["step"], start["from"], start["parent"]) == (FIRST, None, first.run_id)
    assert not child.rundir.list_checkpoints("step")[-1].samefile(child.parent.state)


def test_a_child_that_was_stopped_goes_on_without_its_parent(planned, monkeypatch, own_signals):
    first = planned(f"trainer.max_steps={FIRST}")
    trained(first)
    child, whole = planned("checkpoint.every_steps=null", parent=as_parent(first)), planned()
    step, calls = Trainer.train_step, iter(range(10**6))

    def asked(self: Trainer, *args: Any) -> Any:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", asked)
        stop = StopFlag()
        stop.install()
        assert run_job(child, {}, stop).state == "PREEMPTED"
    shutil.rmtree(first.rundir.path)
    assert trained(child)["weights_sha256"] == trained(whole)["weights_sha256"]
    assert len(set(samples(child))) == len(samples(child))


def test_a_child_that_is_killed_before_its_first_save_has_a_state_of_its_own(planned, monkeypatch):
    first = planned(f"trainer.max_steps={FIRST}")
    trained(first)
    child = planned("checkpoint.every_steps=null", parent=as_parent(first))

    def broken(self: Trainer, *args: Any) -> Any:
        self.session._saver.wait()
        raise RuntimeError("as if it were killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", broken)
        with pytest.raises(RuntimeError):
            run_job(child, {}, StopFlag())
    shutil.rmtree(first.rundir.path)
    assert trained(child)["weights_sha256"] == trained(planned())["weights_sha256"]


def test_a_parent_that_is_gone_or_damaged_when_the_child_begins_is_told_in_one_line(planned):
    first = planned(f"trainer.max_steps={FIRST}")
    trained(first)
    child = planned(parent=as_parent(first))
    (child.parent.state / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"its state of step 4 cannot be used .*model.safetensors is damaged") as told:
        run_job(child, {}, StopFlag())
    assert "\n" not in str(told.value)
    shutil.rmtree(first.rundir.path)
    with pytest.raises(UserError, match=r"MANIFEST.json is missing"):
        run_job(child, {}, StopFlag())


def test_what_the_child_says_of_the_optimizer_and_the_loss_scale_holds(config):
    before, after = config("optim.weight_decay=0.1"), config("optim.weight_decay=0.2", "optim.eps=1e-6")
    model = torch.nn.Linear(2, 2)
    old = make_optimizer(model, before.optim)
    model(torch.ones(2)).sum().backward()
    old.step()
    new = make_optimizer(model, after.optim)
    load_optimizer(new, old.state_dict())
    assert {group["weight_decay"] for group in new.param_groups} <= {0.2, 0.0}
    assert {group["eps"] for group in new.param_groups} == {1e-6}
    assert all(int(new.state[p]["step"]) == 1 for p in model.parameters())
    scaler = Precision(dataclasses.replace(after.precision, kind="fp16", growth_interval=7), "cpu")
    scaler.take_over(
        {"scale": 8.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 5, "_growth_tracker": 3}
    )
    assert (scaler.scaler.get_scale(), scaler.scaler.get_growth_interval()) == (8.0, 7)
    scaler.take_over({})  # the parent had none
    Precision(after.precision, "cpu").take_over({"scale": 8.0})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_steps=4", "trainer.max_steps=4: is not above step 4"),
        ("model.n_embd=32", "model.n_embd 16 -> 32: the state of step 4 does not fit"),
        ("model.tie_weights=false", "model.tie_weights True -> False"),
        ("tokenizer=byte", "tokenizer.kind char -> byte"),
        ("optim.decay=all", "optim.decay matrices -> all"),
    ],
)
def test_what_the_state_does_not_fit_is_refused(config, override, words):
    with pytest.raises(UserError, match=words):
        config(override).continued_from(config("trainer.max_steps=4"), 4)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (["schedule=constant"], ["schedule=constant", "optim.weight_decay=0.3", "optim.lr=0.1"], []),
        (
            ["schedule=cosine", "optim.lr=0.01"],
            ["schedule=cosine", "optim.lr=0.01", "trainer.max_steps=8"],
            ["the learning rate of schedule=cosine depends on trainer.max_steps: at step 4 it jumps from"],
        ),
        (
            ["schedule=cosine", "trainer.max_steps=null", "trainer.epochs=1"],
            ["schedule=cosine", "trainer.max_steps=null", "trainer.epochs=2"],
            ["the learning rate of schedule=cosine depends on trainer.epochs: at step 4 it jumps"],
        ),
        (["schedule=cosine"], ["schedule=cosine", "optim.weight_decay=0.3"], []),
        ([], ["trainer.batch_size=8", "trainer.seed=3", "schedule=constant"], ["trainer.batch_size 4", "trainer.seed"]),
        (["schedule=constant"], ["schedule=constant", "data.count=41"], ["data.digest: from step 4 on other data"]),
    ],
)  # fmt: skip
def test_what_goes_on_otherwise_is_said_in_a_line_each(config, before, after, words):
    said = config(*after).continued_from(config(*before), 4)
    assert len(said) == len(words) and all(line.startswith(start) for line, start in zip(said, words, strict=True))


def test_what_only_the_data_tell_is_refused_at_the_begin():
    saved = {"tokenizer": {"kind": "char", "characters": "ab"}, "step": 4}
    with pytest.raises(UserError, match="stand for other characters"):
        require_same_tokens(saved, {"kind": "char", "characters": "abc"}, 9)
    with pytest.raises(UserError, match="has 4 steps behind it, and this run ends with step 4"):
        require_same_tokens(saved, saved["tokenizer"], 4)
