"""What is said of GPU traces made by hand: what a CPU cannot show. Real runs are looked at in tests/vlm."""

from __future__ import annotations

import pytest

from launcher.runtime.trace.breakdown import break_down
from launcher.runtime.trace.events import read_trace
from launcher.runtime.trace.timeline import lay_out
from launcher.runtime.trace.verdicts import judge
from tests.launcher.runtime.trace.made import event, gpu_run, phase, step, write

CONFIG = {
    "data.workers": 2, "trainer.batch_size": 16, "trainer.compile": False, "trainer.val_every": 10,
    "trainer.val_batches": None, "trainer.log_every": 10, "checkpoint.every_steps": 5, "checkpoint.best": True,
}  # fmt: skip


@pytest.fixture
def verdicts(tmp_path):
    """``verdicts(events, config)``: what is said of them."""

    def judged(events, config=CONFIG):
        return judge(break_down(lay_out(read_trace(write(tmp_path / "t.json", events)))), config)

    return judged


HEALTHY = {"kernels": 20, "kernel": 500, "gap": 0}


@pytest.mark.parametrize(
    ("planted", "kind", "said"),
    [
        ({}, "none", "nothing stands out: the GPU is busy 100 % of the step"),
        ({"data": 5000}, "data", "data loading holds the step back 33 %; try data.workers=4 (now 2)"),
        (
            {"kernel": 4, "gap": 20},
            "overhead",
            "the GPU waits 83 % of the step for Python to launch the next kernel (a kernel takes 4 µs); "
            "try trainer.batch_size=64 (now 16) or trainer.compile=true (now false)",
        ),
        (
            {"kernel": 100, "gap": 60, "sync": True},
            "sync",
            "the host waits for a result 20 times a step, after which the GPU has nothing to do for 38 % of the step; "
            "take .item(), .tolist(), .cpu() and printing out of the step, or do them each trainer.log_every steps",
        ),
        (
            {"comm": (7000, 1000)},
            "communication",
            "ranks wait 38 % of the step for each other, computing nothing (another 6 % is hidden behind computing); "
            "try trainer.batch_size=32 (now 16)",
        ),
        (
            {"validate": 1_000_000},
            "validation",
            "validation takes 91 % of the time (1.00 s each time); "
            "try trainer.val_every=2000 (now 10) or trainer.val_batches=1 (now null)",
        ),
        (
            {"save": 50_000},
            "checkpoint",
            "the training waits 50 % of the time for checkpoints (50.0 ms each time); "
            "try checkpoint.every_steps=100 (now 5)",
        ),
    ],
)
def test_what_was_put_in_is_what_is_said(verdicts, planted, kind, said):
    steps = 1 if kind in ("validation", "checkpoint") else 3
    first, *others = verdicts(gpu_run(steps=steps, first=10, **(HEALTHY | planted)))
    assert (first.kind, first.words) == (kind, said)
    assert not others


def test_communication_behind_computing_is_no_trouble(verdicts):
    (only,) = verdicts(gpu_run(**HEALTHY, comm=(5000, 5000)))
    assert only.kind == "none"


def test_what_is_done_seldom_is_not_judged_by_the_step_in_which_it_was_seen(verdicts):
    seldom = CONFIG | {"trainer.val_every": 1000, "checkpoint.every_steps": 1000}
    made = gpu_run(steps=1, first=1000, **HEALTHY, validate=30_000)
    assert verdicts(made, seldom)[0].kind == "none"
    assert verdicts(made)[0].kind == "validation"


def test_the_best_weights_are_saved_after_a_validation(verdicts):
    config = CONFIG | {"checkpoint.every_steps": None}
    first = verdicts(gpu_run(steps=1, first=10, **HEALTHY, save=50_000), config)[0]
    assert first.words.endswith("try trainer.val_every=100 (now 10) or checkpoint.best=false (now true)")


def test_only_keys_that_the_run_has_are_named(verdicts):
    made = gpu_run(**(HEALTHY | {"data": 5000}))
    assert verdicts(made, {"optim.lr": 1.0})[0].words == "data loading holds the step back 33 %"
    assert verdicts(made, {})[0].words.endswith("; try data.workers=4")


def test_the_worst_is_said_first(verdicts):
    kinds = [v.kind for v in verdicts(gpu_run(**HEALTHY, data=8000, comm=(4000, 0)))]
    assert kinds == ["data", "communication"]
    kinds = [v.kind for v in verdicts(gpu_run(**HEALTHY, data=4000, comm=(8000, 0)))]
    assert kinds == ["communication", "data"]


def test_waits_explain_the_overhead_that_they_cause(verdicts):
    made, now = [], 0
    for number in range(3):
        made += [step(number, now, 1000), phase("forward", now, 1000)]
        for i in range(20):
            made += [event("aten::add", now + 50 * i, 3), event("aten::_local_scalar_dense", now + 50 * i + 10, 2)]
        now += 1000
    assert [v.kind for v in verdicts(made)] == ["sync", "overhead"]
