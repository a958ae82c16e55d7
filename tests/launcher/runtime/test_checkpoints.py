"""Checkpoints: what is saved comes back, what is damaged is passed over, what is malicious is never run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.runtime.checkpoints import MANIFEST, STATE, WEIGHTS, Checkpoints, load, load_file, weights_sha256
from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import CheckpointSettings


def cadence(**changes):
    default = {"every_steps": 1, "keep_last": 3, "keep_every": None, "at_end": "state", "best": True}
    return CheckpointSettings(**default | changes)


def checkpoints(folder, attempt=1, **changes):
    return Checkpoints(RunDir(Path(folder)), cadence(**changes), attempt)


def state(value):
    return {"step": value, "model": {"w": torch.full((3, 2), float(value))}}


def steps(folder, kind="step"):
    return [int(path.name.split("-")[1].split(".")[0]) for path in RunDir(Path(folder)).list_checkpoints(kind)]


# What is saved comes back


def test_everything_a_state_may_hold_comes_back_as_it_was(tmp_path):
    content = {
        "step": 3,
        "plain": {"list": [1, 2.5, None, True], "tuple": (1, "é"), "text": "a"},
        "tensors": {str(dtype): torch.arange(6).to(dtype) for dtype in (torch.bfloat16, torch.int64, torch.bool)},
        "scalar": torch.tensor(1.5),
    }
    checkpoints(tmp_path).save_state(3, content)
    restored, problems = checkpoints(tmp_path, attempt=2).restore()
    assert problems == []
    assert restored["plain"] == content["plain"]
    assert restored["scalar"] == content["scalar"]
    for name, tensor in content["tensors"].items():
        assert restored["tensors"][name].dtype == tensor.dtype
        assert torch.equal(restored["tensors"][name], tensor)


def test_the_state_of_a_real_optimizer_trains_on_to_the_same_weights(tmp_path):
    def trained(model, optimizer, n):
        for i in range(n):
            optimizer.zero_grad()
            model(torch.full((1, 2), float(i))).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    trained(model, optimizer, 3)
    checkpoints(tmp_path).save_state(3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    trained(model, optimizer, 3)
    again = torch.nn.Linear(2, 2)
    optimizer_again = torch.optim.AdamW(again.parameters())
    content, _ = checkpoints(tmp_path).restore()
    again.load_state_dict(content["model"])
    optimizer_again.load_state_dict(content["optimizer"])
    trained(again, optimizer_again, 3)
    assert weights_sha256(again.state_dict()) == weights_sha256(model.state_dict())


def test_nothing_saved_restores_nothing_and_is_no_problem(tmp_path):
    assert checkpoints(tmp_path).restore() == (None, [])


def test_the_newest_is_the_one_of_the_latest_step_then_of_the_latest_attempt(tmp_path):
    checkpoints(tmp_path, attempt=2).save_state(2, {"who": "later attempt"})
    checkpoints(tmp_path, attempt=1).save_state(2, {"who": "earlier attempt"})
    checkpoints(tmp_path, attempt=9).save_state(1, {"who": "earlier step"})
    assert checkpoints(tmp_path).restore()[0] == {"who": "later attempt"}


def test_the_hint_of_the_latest_is_never_needed(tmp_path):
    writer = checkpoints(tmp_path)
    path = writer.save_state(4, state(4))
    latest = RunDir(tmp_path).latest
    assert latest.read_text() == path.name
    latest.write_text("step-000000000099.a0001")
    assert writer.restore()[0]["step"] == 4


def test_a_step_that_this_attempt_has_committed_is_not_written_again(tmp_path):
    writer = checkpoints(tmp_path)
    first = writer.save_state(1, state(1))
    before = (first / STATE).stat()
    assert writer.save_state(1, state(1)) == first
    assert (first / STATE).stat().st_mtime_ns == before.st_mtime_ns
    assert (first / STATE).stat().st_ino == before.st_ino


def test_the_manifest_describes_its_files(tmp_path):
    path = checkpoints(tmp_path, attempt=7).save_best(5, state(5), metric=0.25)
    manifest = json.loads((path / MANIFEST).read_text())
    data = (path / WEIGHTS).read_bytes()
    assert manifest["files"] == [{"name": WEIGHTS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    assert (manifest["kind"], manifest["step"], manifest["attempt"], manifest["metric"]) == ("best", 5, 7, 0.25)


# What is damaged is passed over


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink, lambda path: os.truncate(path, 0)])
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, damage, name):
    writer = checkpoints(tmp_path)
    writer.save_state(1, state(1))
    newest = writer.save_state(2, state(2))
    damage(newest / name)
    restored, problems = checkpoints(tmp_path, attempt=2).restore()
    assert restored["step"] == 1
    assert len(problems) == 1
    assert str(newest) in problems[0]
    assert name in problems[0]


def test_where_all_are_damaged_nothing_is_restored_and_each_is_told(tmp_path):
    writer = checkpoints(tmp_path)
    for step in (1, 2, 3):
        flip_bit(writer.save_state(step, state(step)) / STATE)
    restored, problems = writer.restore()
    assert restored is None
    assert [f"step-{step:012d}" in problem for step, problem in zip((3, 2, 1), problems, strict=True)] == [True] * 3


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        checkpoints(folder).save_state(step, state(step))
    return folder


@settings(max_examples=60)
@given(name=st.sampled_from([STATE, MANIFEST]), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_ever_brings_back_a_wrong_state(two_saved, name, where, bit):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(two_saved, folder, dirs_exist_ok=True)
        path = RunDir(Path(folder)).checkpoint("step", 2, 1) / name
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= 1 << bit
        path.write_bytes(data)
        restored, problems = checkpoints(folder).restore()
        assert restored["step"] == (1 if problems else 2)
        assert problems or name == MANIFEST  # there a bit may fall where nobody looks
        assert torch.equal(restored["model"]["w"], state(restored["step"])["model"]["w"])


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": []}', '{"files": 3}', '{"files": [{}]}', "no json"])
def test_a_manifest_of_another_form_is_unreadable(tmp_path, manifest):
    path = checkpoints(tmp_path).save_state(1, state(1))
    (path / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match=r"MANIFEST\.json is missing or unreadable"):
        load(path)


def test_what_was_saved_after_going_back_is_kept_though_damaged_ones_are_newer(tmp_path):
    flip_bit(checkpoints(tmp_path, keep_last=1).save_state(20, state(20)) / STATE)
    second = checkpoints(tmp_path, attempt=2, keep_last=1)
    assert second.restore()[0] is None
    for step in (5, 10):
        second.save_state(step, state(step))
        assert second.restore()[0]["step"] == step
    second.save_state(25, state(25))
    assert steps(tmp_path) == [25]


# What is malicious is never run


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


def test_a_pickle_bomb_with_a_valid_manifest_is_refused_and_the_one_before_is_used(tmp_path, bomb):
    data, canary = bomb
    writer = checkpoints(tmp_path)
    writer.save_state(1, state(1))
    path = writer.save_state(2, state(2))
    (path / STATE).write_bytes(data)
    entry = {"name": STATE, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = json.loads((path / MANIFEST).read_text()) | {"files": [entry]}
    (path / MANIFEST).write_text(json.dumps(manifest))
    restored, problems = writer.restore()
    assert restored["step"] == 1
    assert "refused" in problems[0]
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


# What is kept


@settings(max_examples=25)
@given(
    st.sets(st.integers(1, 30), min_size=1, max_size=8).map(sorted),
    st.integers(1, 3),
    st.none() | st.integers(1, 6),
)
def test_the_last_few_and_the_round_ones_are_kept(saved, keep_last, keep_every):
    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoints(folder, keep_last=keep_last, keep_every=keep_every)
        for step in saved:
            writer.save_state(step, {"step": step})
        round_ones = {step for step in saved if keep_every and step % keep_every == 0}
        assert set(steps(folder)) == {*saved[-keep_last:]} | round_ones
        assert writer.restore()[0] == {"step": saved[-1]}


def test_a_new_best_replaces_the_one_before_and_nothing_else(tmp_path):
    writer = checkpoints(tmp_path)
    writer.save_state(1, state(1))
    writer.save_best(1, state(1), 0.5)
    best = writer.save_best(2, state(2), 0.4)
    assert steps(tmp_path, "best") == [2]
    assert steps(tmp_path) == [1]
    assert load(best)["step"] == 2


def test_dropping_the_states_leaves_the_weights(tmp_path):
    writer = checkpoints(tmp_path)
    for step in (1, 2):
        writer.save_state(step, state(step))
    writer.save_best(1, state(1), 0.5)
    writer.save_final(2, state(2))
    writer.drop_states()
    assert (steps(tmp_path), steps(tmp_path, "best"), steps(tmp_path, "final")) == ([], [1], [2])
    assert not RunDir(tmp_path).latest.exists()


# Crashes and full disks


def test_what_a_crash_left_before_the_rename_is_ignored_and_the_next_save_works(tmp_path):
    writer = checkpoints(tmp_path)
    writer.save_state(1, state(1))
    committed = writer.save_state(2, state(2))
    left = committed.with_name(f".tmp-{committed.name}")
    committed.rename(left)
    (left / "half").write_bytes(b"x")
    assert steps(tmp_path) == [1]
    assert writer.restore()[0]["step"] == 1
    again = writer.save_state(2, state(2))
    assert {path.name for path in again.iterdir()} == {MANIFEST, STATE}
    assert not left.exists()
    assert writer.restore()[0]["step"] == 2


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from launcher.runtime.checkpoints import Checkpoints
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import CheckpointSettings

class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)

settings = CheckpointSettings(every_steps=1, keep_last=1, keep_every=None, at_end="state", best=False)
writer = Checkpoints(RunDir(Path(sys.argv[1])), settings, 1)
writer.save_state(1, {"step": 1})
writer.save_state(2, {"step": 2, "w": torch.ones(1000), "killer": Killer()})
"""


def test_a_process_killed_while_it_saves_leaves_the_one_before(tmp_path):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in RunDir(tmp_path).checkpoints.iterdir()}
    assert left == {"LATEST", "step-000000000001.a0001", ".tmp-step-000000000002.a0001"}
    assert checkpoints(tmp_path, attempt=2).restore() == ({"step": 1}, [])


_FILL = """
import resource, sys
from pathlib import Path
import torch
from launcher.runtime.checkpoints import Checkpoints
from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import CheckpointSettings
how, folder = sys.argv[1], Path(sys.argv[2])
settings = CheckpointSettings(every_steps=1, keep_last=1, keep_every=None, at_end="state", best=False)
writer = Checkpoints(RunDir(folder), settings, 1)
writer.save_state(1, {"step": 1})
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for floats in (51_000, 1_000_000):  # one that is refused at its very end, one in the middle
    try:
        writer.save_state(2, {"step": 2, "w": torch.ones(floats)})
    except UserError as error:
        print(error)
print(writer.restore())
print(sorted(path.name for path in (folder / "checkpoints").iterdir()))
writer.save_state(3, {"step": 3})
print(writer.restore())
"""


def may_mount() -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize(("how", "reason"), [("limit", "File too large"), ("full", "No space left on device")])
def test_a_full_disk_is_told_and_the_one_before_stays_usable(tmp_path, how, reason):
    words = [sys.executable, "-c", _FILL, how, str(tmp_path)]
    if how == "full":
        if not may_mount():
            pytest.skip("no mounting here")
        mount = f'mount -t tmpfs -o size=200k tmpfs "{tmp_path}" && exec "$@"'
        words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *words]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    refused = f"checkpoint {RunDir(tmp_path).checkpoint('step', 2, 1)}: {reason}; the one before is untouched"
    files = "['LATEST', 'step-000000000001.a0001']"
    after = ["({'step': 1}, [])", files, "({'step': 3}, [])"]
    assert ended.stdout.splitlines() == [refused, refused, *after]


# The weights' checksum

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
tensors = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4).to(dtype),
    shapes,
    st.sampled_from(
        [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    ),
    st.integers(0, 99),
)
weights = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), tensors, max_size=4)


def by_hand(mapping):
    digest = hashlib.sha256()
    for key in sorted(mapping, key=str.encode):
        tensor = mapping[key].contiguous()
        digest.update(key.encode("utf-8"))
        plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
        digest.update(plain.numpy().tobytes(order="C"))
    return digest.hexdigest()


@settings(max_examples=60)
@given(weights)
def test_the_checksum_is_that_of_names_and_bytes_in_order_of_names(mapping):
    assert weights_sha256(mapping) == by_hand(mapping)
    assert weights_sha256(dict(reversed(mapping.items()))) == weights_sha256(mapping)


def test_the_checksum_does_not_depend_on_strides_or_gradients():
    tensor = torch.arange(6.0).reshape(2, 3)
    strided = tensor.t().contiguous().t()
    assert not strided.is_contiguous()
    expected = weights_sha256({"w": tensor})
    assert weights_sha256({"w": strided}) == expected
    assert weights_sha256({"w": torch.nn.Parameter(tensor)}) == expected


def test_the_checksum_sees_one_bit_one_name_and_one_type():
    base = {"w": torch.ones(4, dtype=torch.bfloat16)}
    other = base["w"].clone()
    other.view(torch.int16)[2] ^= 1
    changed = ({"w": other}, {"v": base["w"]}, {"w": base["w"].float()})
    assert len({weights_sha256(mapping) for mapping in (base, *changed)}) == 4
