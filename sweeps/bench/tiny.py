"""The tiny run of the benchmarks about packing: about 0.3 s of training on one core."""

from __future__ import annotations

TINY = (
    "model=tiny", "model.n_embd=16", "model.n_layer=1", "model.n_head=2", "data.count=64", "trainer.max_steps=20",
    "trainer.batch_size=4", "trainer.val_every=20", "trainer.captions=0", "hardware.device=cpu",
    "checkpoint.at_end=weights", "tracker.curves=false", "throughput.peak_tflops=null",
)  # fmt: skip
"""Overrides; each member has another ``trainer.seed``."""
