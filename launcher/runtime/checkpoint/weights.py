"""One number that says whether two runs have learned the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over each key in sorted order (UTF-8) followed by its tensor's contiguous bytes."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
