"""Which samples make up step N, and how each is augmented: pure functions, so that nothing has to be remembered.

The order depends on (seed, epoch) alone and augmentation on (seed, epoch, sample id): neither the number of workers
nor of ranks changes what a step trains on, and a resumed run needs no more than its step.
"""

from __future__ import annotations

import numpy as np

# Streams of ``uniform``: each use draws its own numbers.
_SHIFT_X, _SHIFT_Y, _FLIP, _SHUFFLE = range(4)


class Order:
    """The order of the training samples ``rows`` (row numbers), in global batches of ``batch_size``."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self._shuffled_epoch = -1
        self._shuffled = rows

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every sample once; the last one of an epoch may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Epoch (from 0) that step ``step`` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of step ``step`` (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._shuffled_epoch:  # only so as not to shuffle anew each step
            draws = uniform(self.seed, epoch, self.rows, _SHUFFLE)  # ours: numpy's own draws change between versions
            self._shuffled_epoch, self._shuffled = epoch, self.rows[np.argsort(draws, kind="stable")]
        return self._shuffled[place * self.batch_size :][: self.batch_size]


def share(batch: np.ndarray, rank: int, size: int, micro_batch: int | None) -> list[np.ndarray]:
    """What rank ``rank`` of ``size`` computes of a global batch: its micro-batches, in order.

    Every rank gets the same number of micro-batches, so that they meet in every collective; where a batch does not go
    round, the last ones of some ranks are empty.
    """
    mine = np.array_split(batch, size)[rank]
    largest = -(-len(batch) // size)
    limit = micro_batch or largest
    return [mine[start : start + limit] for start in range(0, largest, limit)]


def uniform(seed: int, epoch: int, samples: np.ndarray, stream: int) -> np.ndarray:
    """One number in [0, 1) a sample, from (seed, epoch, sample, stream) alone (SplitMix64, Steele et al. 2014)."""
    mask = (1 << 64) - 1
    key = np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * 0xC2B2AE3D27D4EB4F + stream * 0x165667B19E3779F9) & mask)
    with np.errstate(over="ignore"):
        x = _mix(samples.astype(np.uint64) + _mix(np.array([key])))
    return (x >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def augmented(images: np.ndarray, shift: int, flip: bool, seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """Shift each of ``images: (B, 3, H, W) uint8`` by up to ``shift`` pixels (edges repeated), mirror some."""
    result = images
    if shift:
        dx, dy = (
            np.floor(uniform(seed, epoch, samples, s) * (2 * shift + 1)).astype(int) - shift
            for s in (_SHIFT_X, _SHIFT_Y)
        )
        rows = np.clip(np.arange(images.shape[2])[None, :] + dy[:, None], 0, images.shape[2] - 1)
        cols = np.clip(np.arange(images.shape[3])[None, :] + dx[:, None], 0, images.shape[3] - 1)
        index = np.arange(len(images))[:, None, None, None], np.arange(3)[None, :, None, None]
        result = images[index[0], index[1], rows[:, None, :, None], cols[:, None, None, :]]
    if flip:
        mirrored = uniform(seed, epoch, samples, _FLIP) < 0.5
        result = np.where(mirrored[:, None, None, None], result[..., ::-1], result)
    return result
