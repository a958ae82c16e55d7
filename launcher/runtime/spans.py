"""Names for the parts of a step in what a profiler records; where none records, they cost one comparison."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

from launcher.runtime.trace.events import PHASE

_NOTHING = nullcontext()


def span(name: str) -> AbstractContextManager[Any]:
    """The block is part ``name`` of a step: data, forward, backward, optimizer, communication, validation, checkpoint.

    Any other name is a part too. Parts may stand in each other.
    """
    return profiler.record_function(PHASE + name) if profiler._is_profiler_enabled else _NOTHING
