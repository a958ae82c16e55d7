"""What a task returns, as the summary takes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from launcher.runtime.errors import UserError
from launcher.runtime.outcome import summary_of


def test_numbers_of_torch_and_numpy_become_plain_ones():
    assert summary_of({"a": torch.tensor(0.5), "b": np.float32(2), "c": "text"}) == {"a": 0.5, "b": 2.0, "c": "text"}
    assert summary_of(None) == {}


@pytest.mark.parametrize("said", [0.5, [1], {"weights": torch.zeros(3)}, {"what": object()}])
def test_what_a_summary_cannot_hold_is_told(said):
    with pytest.raises(UserError, match=r"^the task returned "):
        summary_of(said)
