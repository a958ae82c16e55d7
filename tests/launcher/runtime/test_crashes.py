"""A crash after every system call that a save makes leaves the old state or the new one, whole: never neither."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from launcher.runtime.checkpoint.saver import Author, Saver, Wish
from launcher.runtime.lease import Lease
from launcher.runtime.resume import find
from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import CheckpointSettings
from launcher.runtime.world import World
from tests.killed_at import begin, in_fork, names, run_killed, why_not

KEPT = 2
TENSORS = 10

# All that knows the API under test.


def save(folder: Path, step: int, attempt: int) -> None:
    """Commit the state of ``step``, all of it before this returns."""
    rundir = RunDir(folder)
    rundir.path.mkdir(exist_ok=True)
    rundir.sweep()  # as an attempt does when it takes a run over
    cadence = CheckpointSettings(every_steps=1, keep_last=KEPT, keep_every=None, at_end="state", best=True)
    author = Author(run_id="run", attempt=attempt, lease=Lease(rundir.lease, ""), fingerprint={})
    found = None if attempt == 1 else find(rundir, "run", World(), restart_if_damaged=False).restored
    saver = Saver(rundir, cadence, World(), author, found.path if found else None)
    begin()
    saver.start(state(step), [Wish(kind="step", step=step, entries=frozenset(("step", "model")))])
    saver.wait()
    assert saver.failures == 0, saver.error


def restore(folder: Path) -> int | None:
    """The step that a new process resumes from, once its state proved to be whole; None where it starts over."""
    found = find(RunDir(folder), "run", World(), restart_if_damaged=False).restored
    return None if found is None else proven(found.content)


def kept_and_litter(folder: Path) -> tuple[list[int], list[str]]:
    """The steps whose states are there, newest first; and what else lies among them, part of nothing."""
    rundir = RunDir(folder)
    states = rundir.list_checkpoints("step")
    names = ("model.safetensors", "rank0000.json", "MANIFEST.json")
    ours = {rundir.latest, *states, *(path / name for path in states for name in names)}
    litter = [str(p.relative_to(folder)) for p in rundir.checkpoints.rglob("*") if p not in ours]
    return [int(path.name.split("-")[1].split(".")[0]) for path in states], litter


# The test


def state(step: int) -> dict[str, object]:
    """A state each part of which says its step."""
    return {"step": step, "model": {f"w{i}": torch.full((3, 5), float(step)) for i in range(TENSORS)}}


def proven(content: dict[str, object]) -> int:
    """The step of a state all of whose parts are of one step."""
    step, model = content["step"], content["model"]
    assert isinstance(step, int)
    assert isinstance(model, dict)
    assert sorted(model) == sorted(f"w{i}" for i in range(TENSORS))
    assert all(torch.equal(tensor, torch.full((3, 5), float(step))) for tensor in model.values()), "a mixed state"
    return step


def begun(folder: Path) -> None:
    """The states of steps 1 and 2, as a first attempt leaves them: one more, and the first goes."""
    for step in (1, 2):
        save(folder, step, attempt=1)


def crash_everywhere(root: Path) -> list[tuple[str, int | None, list[int], list[str]]]:
    """Save step 3 once for each system call that this takes, killed right after it; then restore, and save again.

    Returns:
        For each of them: where it was killed, the step restored, the steps kept and the litter left by the next save.
    """
    in_fork(lambda: begun(root / "begun"))
    calls = names(lambda: _save_traced(copied(root)))
    found = []
    for after, name in enumerate(calls, start=1):
        folder = copied(root)
        assert run_killed(lambda: _save_traced(folder), after) is None, f"{after}: the count is not stable"  # noqa: B023
        step = in_fork(lambda: restore(folder))  # noqa: B023
        following = (step or 0) + 1
        in_fork(lambda: save(folder, following, attempt=3))  # noqa: B023
        assert in_fork(lambda: restore(folder)) == following, f"{after}: {name}"  # noqa: B023
        found.append((f"{after}: {name}", step, *kept_and_litter(folder)))
    return found


def copied(root: Path) -> Path:
    """A copy of the run that was begun, in the place of the one before."""
    shutil.rmtree(root / "run", ignore_errors=True)
    return shutil.copytree(root / "begun", root / "run", symlinks=True)


def _save_traced(folder: Path) -> None:
    save(folder, 3, attempt=2)


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    """``crash_everywhere`` in a fresh process: it forks, which one that computed with torch or has threads must not."""
    if reason := why_not():
        pytest.skip(reason)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(crash_everywhere, tmp_path_factory.mktemp("crashes")).result()


def test_a_crash_anywhere_leaves_the_old_state_or_the_new_one(crashes):
    restored = {where: step for where, step, _, _ in crashes}
    assert set(restored.values()) == {2, 3}, {where: step for where, step in restored.items() if step not in (2, 3)}


def test_once_the_new_state_is_restored_it_stays(crashes):
    steps = [step or 0 for _, step, _, _ in crashes]
    assert steps == sorted(steps)


def test_what_is_written_is_durable_before_it_counts(crashes):
    """Killing a process loses nothing that was written, a power failure does: so the order of calls is looked at."""
    calls = [where.split(": ")[1] for where, *_ in crashes]
    committed = next(i for i, call in enumerate(calls) if call.startswith("rename"))
    before = list(itertools.pairwise(calls[:committed]))
    assert {call for call, after in before if after == "close"} == {"fsync"}, calls
    assert calls[committed + 1] == "fsync", calls  # of the folder; the hint that follows need not be durable
    assert any(call.startswith("unlink") for call in calls[committed:]), calls  # older states go after the commit
    assert not any(call.startswith("unlink") for call in calls[:committed]), calls


def test_the_save_after_a_crash_keeps_what_it_should(crashes):
    wrong = {where: kept for where, step, kept, _ in crashes if kept != [(step or 0) + 1, step]}
    assert not wrong


def test_the_save_after_a_crash_leaves_no_litter(crashes):
    left = {where: litter for where, *_, litter in crashes if litter}
    assert not left
