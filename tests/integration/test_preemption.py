"""Preempted again and again, on several nodes, a run ends as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt
from tests.integration.lab import FOUR, TWO, Lab, assert_same, redone

MODEL = (
    "task.target=vlm.task:train", "task.schema=vlm.config:TrainConfig", "data.count=80", "data.workers=1",
    "model.n_embd=16", "model.n_head=2", "model.n_layer=1", "model.n_blocks=1", "model.img_size=16",
    "model.patch_size=8", "model.image_embed_dim=16", "model.dropout=0.1", "data.augment_shift=2",
    "trainer.log_every=1", "trainer.val_every=25", "trainer.captions=1", "trainer.log_samples=true",
    "trainer.max_steps=400", "hardware.micro_batch=2",
)  # fmt: skip
"""The model that comes along, small; with validation, dropout, augmentation, accumulation and a data worker."""

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One user for all tests here."""
    return Lab(cluster, tmp_path_factory.mktemp("lab") / "home")


@pytest.mark.parametrize("hardware", [TWO, FOUR], ids=["2 ranks", "4 ranks"])
def test_preempted_three_times_nothing_is_lost_and_nothing_done_again(lab: Lab, hardware: tuple[str, ...]):
    wish = (*hardware, "trainer.max_steps=300")
    run = lab.run(f"preempted-{len(hardware)}", *wish)
    drawn = random.Random(len(hardware))
    for attempt in (1, 2, 3):
        run.wait_for_step(run.step + drawn.randint(5, 60), attempt)
        preempt(lab.cluster, run.job)
    assert_same(run, lab.uninterrupted(*wish))
    assert redone(run) == 0
    assert [event["reason"] for event in run.events("requeue")] == ["preempted"] * 3


def test_so_does_the_model_that_comes_along(lab: Lab):
    wish = (*FOUR, *MODEL)
    run = lab.run("model", *wish)
    for attempt in (1, 2):
        run.wait_for_step(run.step + 40, attempt)
        preempt(lab.cluster, run.job)
    assert_same(run, lab.uninterrupted(*wish))
    assert redone(run) == 0
