"""Files that ``torch.save`` wrote: tensors and plain values are read, code in them is never run."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from vlm.torch_file import load_file


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def bomb_of(canary, *, zipped):
    data = io.BytesIO()
    torch.save({"model": Bomb(canary)}, data, _use_new_zipfile_serialization=zipped)
    return data.getvalue()


@pytest.fixture(params=["torch", "old torch", "pickle"])
def bomb(request, tmp_path):
    """Bytes that make a folder where they are unpickled carelessly, and that folder."""
    canary = tmp_path / "canary"
    makers = {
        "torch": lambda: bomb_of(canary, zipped=True),
        "old torch": lambda: bomb_of(canary, zipped=False),
        "pickle": lambda: pickle.dumps({"model": Bomb(canary)}, protocol=2),
    }
    data = makers[request.param]()
    torch.load(io.BytesIO(data), weights_only=False) if request.param != "pickle" else pickle.loads(data)
    assert canary.exists(), "the bomb is a dud, and the test with it"
    canary.rmdir()
    return data, canary


def test_a_pickle_bomb_given_as_a_file_is_refused_and_not_run(tmp_path, bomb):
    data, canary = bomb
    (tmp_path / "weights.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.pt: refused, not a file of tensors and plain values only"):
        load_file(tmp_path / "weights.pt")
    assert not canary.exists()


@settings(max_examples=60)
@example(b"\x80\x02.")  # an IndexError in torch
@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"\x80\x02" + tail))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_any_file_at_all_is_either_a_mapping_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        path.write_bytes(data)
        try:
            assert isinstance(load_file(path), dict)
        except UserError as error:
            assert str(path) in str(error)


def test_a_file_that_is_not_there_is_told_by_its_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such file"):
        load_file(tmp_path / "none.pt")


def test_a_file_that_holds_no_mapping_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="should hold a mapping of names to tensors, holds a list"):
        load_file(tmp_path / "list.pt")
