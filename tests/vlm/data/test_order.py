"""The order of samples and their augmentation: pure functions of seed, epoch, step and sample."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.data.order import Order, augmented, share, uniform

SEED = st.integers(0, 2**63)
EPOCH = st.integers(0, 1000)
common = settings(deadline=None, max_examples=60)


def epoch_of_batches(order, epoch):
    first = epoch * order.steps_per_epoch
    return [order.batch(step).tolist() for step in range(first, first + order.steps_per_epoch)]


@common
@given(
    rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True),
    batch_size=st.integers(1, 70),
    seed=SEED,
    epoch=EPOCH,
)
def test_an_epoch_has_every_row_once_and_only_its_last_batch_is_smaller(rows, batch_size, seed, epoch):
    order = Order(np.array(rows), batch_size, seed)
    batches = epoch_of_batches(order, epoch)
    assert sorted(chain(*batches)) == sorted(rows)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) == (len(rows) - 1) % batch_size + 1
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert {order.epoch_of(step) for step in steps} == {epoch}


@common
@given(steps=st.lists(st.integers(0, 200), min_size=1, max_size=20), seed=SEED)
def test_a_batch_depends_on_its_step_alone_not_on_what_was_asked_before(steps, seed):
    order = Order(np.arange(23), 4, seed)
    asked = [order.batch(step).tolist() for step in steps]
    assert asked == [Order(np.arange(23), 4, seed).batch(step).tolist() for step in steps]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(chain(*epoch_of_batches(Order(np.arange(50), 8, s), e))) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def test_the_first_place_is_taken_by_every_row_about_equally_often():
    order = Order(np.arange(10), 10, seed=1)
    counts = np.bincount([order.batch(epoch)[0] for epoch in range(1000)], minlength=10)
    assert counts.min() > 60 and counts.max() < 140


@settings(deadline=None, max_examples=200)
@given(batch=st.integers(1, 70), size=st.integers(1, 9), micro=st.none() | st.integers(1, 20))
def test_shares_together_are_the_batch_in_as_many_micro_batches_on_each_rank(batch, size, micro):
    rows = np.arange(batch) * 7
    shares = [share(rows, rank, size, micro) for rank in range(size)]
    assert np.concatenate([part for mine in shares for part in mine]).tolist() == rows.tolist()
    assert len({len(mine) for mine in shares}) == 1
    limit = micro or -(-batch // size)
    assert max(len(part) for mine in shares for part in mine) <= limit
    per_rank = [sum(len(part) for part in mine) for mine in shares]
    assert max(per_rank) - min(per_rank) <= 1
    assert len(shares[0]) == -(-max(per_rank) // limit)  # no more than it takes


samples = st.lists(st.integers(0, 2**40), min_size=1, max_size=30).map(np.array)


@common
@given(seed=SEED, epoch=EPOCH, samples=samples, stream=st.integers(0, 10), data=st.data())
def test_uniform_is_in_0_1_and_depends_on_its_arguments_alone(seed, epoch, samples, stream, data):
    numbers = uniform(seed, epoch, samples, stream)
    assert numbers.shape == samples.shape and numbers.dtype == np.float64
    assert ((numbers >= 0) & (numbers < 1)).all()
    chosen = np.array(data.draw(st.lists(st.integers(0, len(samples) - 1), min_size=1)))
    assert np.array_equal(uniform(seed, epoch, samples[chosen], stream), numbers[chosen])


def split_mix(x):
    """SplitMix64's output function in plain integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@common
@given(seed=SEED, epoch=EPOCH, samples=samples, stream=st.integers(0, 10))
def test_uniform_stays_what_it_is_so_that_a_run_resumes_as_it_began(seed, epoch, samples, stream):
    key = (seed * 0x9E3779B97F4A7C15 + epoch * 0xC2B2AE3D27D4EB4F + stream * 0x165667B19E3779F9) % 2**64
    expected = [(split_mix((int(sample) + split_mix(key)) % 2**64) >> 11) / 2**53 for sample in samples]
    assert uniform(seed, epoch, samples, stream).tolist() == expected


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (0, 0, 2), (0, 3, 1), (12345, 7, 0), (2**63, 1, 2)])
def test_uniform_is_uniform(seed, epoch, stream):
    numbers = uniform(seed, epoch, np.arange(100_000), stream)
    assert abs(numbers.mean() - 0.5) < 0.005
    tenths = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert tenths.min() > 9_500 and tenths.max() < 10_500


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["seed", "epoch", "stream"])
def test_uniform_of_another_seed_epoch_or_stream_has_nothing_to_do_with_it(other):
    base = uniform(0, 0, np.arange(20_000), 0)
    numbers = uniform(other[0], other[1], np.arange(20_000), other[2])
    assert abs(np.corrcoef(base, numbers)[0, 1]) < 0.03
    neighbours = np.corrcoef(base[1:], base[:-1])[0, 1]
    assert abs(neighbours) < 0.03


def pictures(n, height=7, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), np.uint8)


def moved(image, dy, dx, mirror):
    """``image`` shifted with its edges repeated, then mirrored: written in another way than the product's."""
    far = max(abs(dy), abs(dx))
    wide = np.pad(image, ((0, 0), (far, far), (far, far)), mode="edge")
    cut = wide[:, far + dy : far + dy + image.shape[1], far + dx : far + dx + image.shape[2]]
    return cut[:, :, ::-1] if mirror else cut


@settings(deadline=None, max_examples=25)
@given(shift=st.integers(0, 4), flip=st.booleans(), seed=SEED, epoch=EPOCH)
def test_each_picture_is_shifted_by_at_most_so_much_and_mirrored_only_if_asked(shift, flip, seed, epoch):
    images = pictures(6)
    result = augmented(images, shift, flip, seed, epoch, np.arange(6))
    assert result.dtype == np.uint8 and result.shape == images.shape
    around = range(-shift, shift + 1)
    for image, changed in zip(images, result, strict=True):
        ways = (moved(image, dy, dx, m) for dy in around for dx in around for m in ([False, True] if flip else [False]))
        assert any(np.array_equal(way, changed) for way in ways)


@common
@given(
    shift=st.integers(0, 12),
    flip=st.booleans(),
    seed=SEED,
    epoch=EPOCH,
    chosen=st.lists(st.integers(0, 9), min_size=1, max_size=8),
)
def test_a_sample_is_augmented_the_same_whatever_batch_it_is_in(shift, flip, seed, epoch, chosen):
    images, names = pictures(10), np.arange(10) * 1000
    together = augmented(images, shift, flip, seed, epoch, names)
    some = augmented(images[chosen], shift, flip, seed, epoch, names[chosen])
    assert np.array_equal(some, together[chosen])
    alone = augmented(images[chosen[:1]], shift, flip, seed, epoch, names[chosen[:1]])
    assert np.array_equal(alone, together[chosen[:1]])


@common
@given(seed=SEED, epoch=EPOCH, samples=samples)
def test_without_shift_and_flip_pictures_stay_as_they_are(seed, epoch, samples):
    images = pictures(len(samples))
    assert np.array_equal(augmented(images, 0, False, seed, epoch, samples), images)


def test_augmenting_does_not_change_the_pictures_given():
    images = pictures(20)
    before = images.copy()
    augmented(images, 3, True, 0, 0, np.arange(20))
    assert np.array_equal(images, before)


def test_about_half_is_mirrored_and_every_shift_occurs():
    image = pictures(1)
    many = image.repeat(500, axis=0)
    mirrored = augmented(many, 0, True, 0, 0, np.arange(500))
    assert 200 < (mirrored == image[0, :, :, ::-1]).all(axis=(1, 2, 3)).sum() < 300
    shifted = augmented(many, 1, False, 0, 0, np.arange(500))
    counts = [
        (shifted == moved(image[0], dy, dx, False)).all(axis=(1, 2, 3)).sum() for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    ]
    assert sum(counts) == 500 and min(counts) > 25


@pytest.mark.parametrize(("shift", "flip"), [(3, False), (0, True)])
def test_another_epoch_or_seed_augments_in_another_way(shift, flip):
    images = pictures(30)
    ways = [augmented(images, shift, flip, seed, epoch, np.arange(30)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({way.tobytes() for way in ways}) == 3
