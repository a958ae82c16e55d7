"""Steps of training: the same whatever prepares them, from wherever they start, on however many ranks."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.runtime.world import World
from vlm.data.dataset import open_data
from vlm.data.loader import StepDataset, steps_from

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core


@pytest.fixture
def opened(config):
    """(config, data) of 40 scenes, 36 or so to train on in batches of 7, augmented."""
    chosen = config("trainer.batch_size=7", "data.augment_shift=2", "data.augment_flip=true", "data.val_fraction=0.1")
    return chosen, open_data(chosen)


def dataset(opened, **world):
    chosen, data = opened
    return StepDataset(data, chosen, World(**world))


def content(step):
    """All that a step is, as plain values."""
    micro = [[t.tolist() for t in (b.images, b.inputs, b.targets, b.rows)] for b in step.micro_batches]
    return micro, step.n_targets, step.n_samples, step.epoch


def stream(steps, start, stop, workers=0):
    return [content(step) for step in steps_from(steps, start, stop, workers, pin=False)]


def test_steps_are_those_of_the_dataset_in_order(opened):
    steps = dataset(opened)
    assert stream(steps, 3, 9) == [content(steps[step]) for step in range(3, 9)]


def test_worker_processes_change_nothing(opened):
    steps = dataset(opened, micro_batch=3)
    assert stream(steps, 2, 12, workers=2) == stream(steps, 2, 12, workers=0)


@pytest.mark.parametrize("start", [1, 5, 6, 11])
def test_starting_later_gives_the_same_steps_as_skipping(opened, start):
    assert stream(dataset(opened), start, 14) == stream(dataset(opened), 0, 14)[start:]


def test_no_steps_left_is_an_empty_stream(opened):
    assert stream(dataset(opened), 5, 5) == []


def test_an_epoch_trains_on_every_row_once(opened):
    steps, train = dataset(opened), opened[1].train
    per_epoch = -(-len(train) // 7)
    for epoch in range(2):
        found = [steps[step] for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
        assert {step.epoch for step in found} == {epoch}
        rows = torch.cat([batch.rows for step in found for batch in step.micro_batches])
        assert sorted(rows.tolist()) == train.tolist()
        assert [step.n_samples for step in found[:-1]] == [7] * (per_epoch - 1)
        assert sum(step.n_samples for step in found) == len(train)


def samples(step):
    """Row to (picture, its target tokens) of the samples that a rank computes in a step."""
    return {
        int(row): (image.tolist(), target[target >= 0].tolist())
        for batch in step.micro_batches
        for row, image, target in zip(batch.rows, batch.images, batch.targets, strict=False)
    }


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 4) | st.just(9), micro=st.none() | st.integers(1, 8), step=st.integers(0, 30))
def test_ranks_together_compute_the_global_batch(opened, size, micro, step):
    whole = dataset(opened)[step]
    ranks = [dataset(opened, rank=rank, size=size, micro_batch=micro)[step] for rank in range(size)]
    rows = [row for rank in ranks for batch in rank.micro_batches for row in batch.rows.tolist()]
    assert sorted(rows) == sorted(whole.micro_batches[0].rows.tolist())
    together = {row: sample for rank in ranks for row, sample in samples(rank).items()}
    assert together == samples(whole)  # the same pictures too: augmentation does not depend on the rank
    assert len({len(rank.micro_batches) for rank in ranks}) == 1
    limit = micro or 7
    assert all(len(batch.inputs) <= limit for rank in ranks for batch in rank.micro_batches)
    assert {(rank.n_targets, rank.n_samples, rank.epoch) for rank in ranks} == {
        (whole.n_targets, whole.n_samples, whole.epoch)
    }
    counted = sum(int((batch.targets >= 0).sum()) for rank in ranks for batch in rank.micro_batches)
    assert counted == whole.n_targets


def test_a_rank_without_samples_computes_a_batch_without_targets(opened):
    step = dataset(opened, rank=8, size=9)[0]
    (batch,) = step.micro_batches
    assert len(batch.inputs) == len(batch.images) == 1
    assert (batch.targets < 0).all() and len(batch.rows) == 0


def test_without_augmentation_pictures_are_those_of_the_cache(config):
    chosen = config()
    data = open_data(chosen)
    (batch,) = StepDataset(data, chosen, World())[3].micro_batches
    assert np.array_equal(batch.images.numpy(), data.rows.decoded.images[batch.rows.numpy()])


def test_another_epoch_augments_a_picture_in_another_way(opened):
    steps = dataset(opened)
    per_epoch = steps.order.steps_per_epoch
    first, second = (
        {row: sample for i in range(per_epoch) for row, sample in samples(steps[epoch * per_epoch + i]).items()}
        for epoch in (0, 1)
    )
    assert first.keys() == second.keys()
    assert sum(first[row][0] != second[row][0] for row in first) > len(first) / 2
    assert all(first[row][1] == second[row][1] for row in first)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(opened, workers):
    steps = dataset(opened)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()
    assert len(stream(steps, 0, 5, workers)) == 5
    assert torch.equal(torch.random.get_rng_state(), before)
    numpy_after = np.random.get_state()
    assert np.array_equal(numpy_before[1], numpy_after[1]) and numpy_before[2:] == numpy_after[2:]


def test_the_global_random_state_changes_no_step(opened):
    steps = dataset(opened)
    expected = stream(steps, 0, 4)
    torch.rand(3)
    np.random.random(3)
    assert stream(steps, 0, 4) == expected


def test_workers_go_on_when_slurm_signals_them(opened):
    steps = dataset(opened)
    before = set(multiprocessing.active_children())
    arriving = steps_from(steps, 0, 30, workers=2, pin=False)
    found = [content(next(arriving)) for _ in range(2)]  # both workers have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            os.kill(worker.pid, number)
    found += [content(step) for step in arriving]
    assert found == stream(steps, 0, 30)
