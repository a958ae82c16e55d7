"""A disk that is full, and checkpoints that are damaged, lost, forged or hostile: the last good one is always there."""

from __future__ import annotations

import csv
import dataclasses
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.runtime.checkpoint.manifest import NAME, Manifest, xxh3
from launcher.runtime.checkpoint.reading import read
from slurm.cluster import Cluster
from slurm.faults import show_job
from slurm.processes import wait_until
from tests.ballast import Ballast
from tests.integration.lab import TWO, Lab, Run, assert_same, rows
from tests.launcher.runtime.saving import empty, flip, truncate

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]

KIB = 1024
WISH = (*TWO, "trainer.max_steps=160")
NO_SPACE = "No space left on device"


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One user for all tests here; no job of theirs is left."""
    lab = Lab(cluster, tmp_path_factory.mktemp("lab") / "home")
    yield lab
    lab.type("launcher", "cancel", "runs", "--grace", "0")


class SmallDisk:
    """A disk of a few megabytes, of which a test says how much is free."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk of its own takes the right to mount one: {done.stderr.strip()}")
        self.path = path
        self.leave = Ballast(path).leave

    def unmount(self) -> None:
        """Done with it."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(lab: Lab) -> Iterator[Callable[[str], SmallDisk]]:
    """``disk("name")``: the sweep of that name gets a disk of its own."""
    made: list[SmallDisk] = []

    def new(name: str) -> SmallDisk:
        made.append(SmallDisk(lab.home / "runs" / name))
        return made[-1]

    yield new
    for one in made:
        one.unmount()


def saved_steps(run: Run) -> list[int]:
    """Steps of the full states that are there, every byte of each checked."""
    steps = []
    for path in run.checkpoints():
        manifest = Manifest.read(path)
        for rank in range(manifest.world_size):
            assert read(path, manifest, rank, all_files=True)["step"] == manifest.step
        steps.append(manifest.step)
    return steps


def assert_no_litter(run: Run) -> None:
    """No half of a checkpoint, and no file that was being replaced."""
    assert not list(run.path.glob("checkpoints/.unfinished-*")) and not list(run.path.glob("**/.*.tmp")), run.story()


def failures(run: Run) -> list[tuple[int, int]]:
    """Step and value of ``checkpoint/failures`` wherever it was logged."""
    told = csv.DictReader((run.path / "metrics.csv").read_text().splitlines())
    return [
        (int(r["step"]), int(float(r["value"]))) for r in told if (r["split"], r["name"]) == ("checkpoint", "failures")
    ]


def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(
    lab: Lab, disk: Callable[[str], SmallDisk]
):
    small = disk("full")
    run = lab.run("full", *WISH, orders={"hold": 39})
    run.wait_held(2)
    # A checkpoint takes 48 KiB of rank 0 and 24 of rank 1; what is logged in between some more.
    for room, step in ((64, 40), (40, 60)):  # rank 1 finds the disk full; rank 0 does, in its last file
        small.leave(room * KIB)
        run.move_on(step + 19)
        run.wait_held(2)
        run.wait(lambda step=step: all(run.logged(f"step {step} was not saved: {NO_SPACE}", rank) for rank in (0, 1)))
        assert saved_steps(run) == [20], "what was there is untouched"
        assert_no_litter(run)
    small.leave(4096 * KIB)
    run.move_on(99)
    run.wait_held(2)
    assert saved_steps(run) == [20, 80]
    small.leave(12 * KIB)  # too little for its tensors: found out before anything is written
    run.move_on(101)
    run.wait_held(2)
    run.wait(lambda: all(run.logged(f"step 100 was not saved: {NO_SPACE}", rank) for rank in (0, 1)))
    assert saved_steps(run) == [20, 80]
    small.leave(4096 * KIB)
    run.move_on()
    assert_same(run, lab.uninterrupted(*WISH))
    assert len(run.events("start")) == 1 and saved_steps(run) == [140, 160]
    told = failures(run)
    assert [value for step, value in told if step in (59, 79, 119)] == [1, 2, 1], "in the metrics until it is mended"
    assert {step for step, _ in told} <= {*range(40, 81), *range(100, 121)}
    assert_no_litter(run)


def test_three_saves_in_a_row_that_fail_end_the_run_and_the_same_command_goes_on(
    lab: Lab, disk: Callable[[str], SmallDisk]
):
    small = disk("stays-full")
    run = lab.run("stays-full", *WISH, orders={"hold": 39})
    run.wait_held(2)
    small.leave(68 * KIB)
    run.move_on()
    run.wait_for("FAILED", "COMPLETED")
    run.wait(lambda: show_job(lab.cluster, run.job).state == "FAILED")
    reason = run.read("status.json")["reason"]
    assert run.state == "FAILED" and NO_SPACE in reason and "is the disk full?" in reason and "\n" not in reason
    assert run.events("requeue") == [] and show_job(lab.cluster, run.job).restarts == 0
    assert run.events("end")[-1]["code"] == 1 and 80 <= run.events("end")[-1]["step"] <= 101
    assert saved_steps(run) == [20]
    assert_no_litter(run)
    small.leave(4096 * KIB)
    again = lab.again("stays-full", *WISH)
    assert_same(again, lab.uninterrupted(*WISH))
    assert [event["step"] for event in again.events("start")] == [0, 20]


def test_a_disk_without_a_single_byte_ends_the_run_and_the_same_command_goes_on(
    lab: Lab, disk: Callable[[str], SmallDisk]
):
    small = disk("no-byte")
    run = lab.run("no-byte", *WISH, orders={"hold": 39})
    run.wait_held(2)
    small.leave(0)
    run.move_on()
    assert wait_until(lambda: show_job(lab.cluster, run.job).state == "FAILED", 90), run.story()
    assert show_job(lab.cluster, run.job).restarts == 0 and saved_steps(run) == [20]
    assert [row.state for row in rows(lab, "no-byte")] == ["FAILED"], "Slurm says it where our files cannot"
    assert_no_litter(run)
    small.leave(4096 * KIB)
    again = lab.again("no-byte", *WISH)
    assert_same(again, lab.uninterrupted(*WISH))
    assert [event["step"] for event in again.events("start")] == [0, 20]


@pytest.fixture(scope="module")
def half(lab: Lab) -> Run:
    """A run that was cancelled half-way, with six checkpoints."""
    run = lab.run("half", *WISH, *MANY)
    run.wait_for_step(60)
    run.cancel()
    assert len(saved_steps(run)) == 6
    return run


MANY = ("checkpoint.every_steps=10", "checkpoint.keep_last=6")


def copied(half: Run, name: str) -> list[Path]:
    """Another sweep that holds the half run; its checkpoints, newest first."""
    folder = shutil.copytree(half.path, half.path.parent.parent / name / half.path.name)
    return sorted(folder.glob("checkpoints/step-*"), reverse=True)


def step_of(path: Path) -> int:
    return int(path.name[5:17])


def assert_passed_over(run: Run, bad: list[Path], good: Path, *reasons: str) -> None:
    """The newest attempt went on from ``good`` and said why not from ``bad``, in the log and in attempts.jsonl."""
    start = run.events("start")[-1]
    assert (start["from"], start["step"]) == (good.name, step_of(good)), run.story()
    assert len(start["passed_over"]) == len(bad) == len(reasons)
    for path, reason, said in zip(bad, reasons, start["passed_over"], strict=True):
        assert path.name in said and reason in said and run.logged(f"{said}; passed over")


def test_a_damaged_file_is_found_and_the_last_good_checkpoint_used(lab: Lab, half: Run):
    newest, second, third, fourth, good, *_ = copied(half, "damaged")
    truncate(newest / "model.safetensors")
    flip(second / "optimizer.safetensors")
    empty(third / "rank0001.json")  # of the other rank
    flip(fourth / NAME)
    (good.parent / "LATEST").write_text(newest.name)
    run = lab.run("damaged", *WISH, *MANY)
    assert_same(run, lab.uninterrupted(*WISH))
    differs = "is damaged (size or checksum differs from the manifest)"
    reasons = (f"model.safetensors {differs}", f"optimizer.safetensors {differs}", f"rank0001.json {differs}")
    assert_passed_over(run, [newest, second, third, fourth], good, *reasons, f"{NAME} is damaged")


def test_a_file_or_a_manifest_that_is_missing_or_anothers_is_told(lab: Lab, half: Run):
    newest, second, third, fourth, good, *_ = copied(half, "incomplete")
    (newest / "optimizer.safetensors").unlink()
    (second / NAME).unlink()
    theirs = dataclasses.replace(Manifest.read(third), run_id="0123456789ab")
    (third / NAME).write_bytes(theirs.to_bytes())
    shutil.copy(good / NAME, fourth / NAME)
    (good.parent / "LATEST").unlink()
    run = lab.run("incomplete", *WISH, *MANY)
    assert_same(run, lab.uninterrupted(*WISH))
    reasons = ("optimizer.safetensors is missing", f"its {NAME} is missing", "(0123456789ab, step ")
    assert_passed_over(run, [newest, second, third, fourth], good, *reasons, "is not what its place says")


class Gadget:
    """What unpickling it would do."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch {self.canary}",)


def test_a_hostile_checkpoint_is_passed_over_and_nothing_of_it_is_run(lab: Lab, half: Run):
    newest, second, third, fourth, fifth, good = copied(half, "hostile")
    canary = lab.home / "canary"
    gadget = pickle.dumps(Gadget(canary))
    for folder, name in ((newest, "model.safetensors"), (second, "rank0000.json"), (third, NAME)):
        (folder / name).write_bytes(gadget)
    for folder, name in ((fourth, "model.safetensors"), (fifth, "rank0000.json")):  # its checksum being right
        (folder / name).write_bytes(gadget)
        manifest, entry = Manifest.read(folder), {"name": name, "bytes": len(gadget), "xxh3": xxh3(gadget)}
        files = tuple(entry if file["name"] == name else file for file in manifest.files)
        (folder / NAME).write_bytes(dataclasses.replace(manifest, files=files).to_bytes())
    (good.parent / "LATEST").write_bytes(gadget)
    run = lab.run("hostile", *WISH, *MANY)
    assert_same(run, lab.uninterrupted(*WISH))
    reasons = ("model.safetensors", "rank0000.json", NAME, "cannot be read", "rank0000.json holds no state")
    assert_passed_over(run, [newest, second, third, fourth, fifth], good, *reasons)
    assert not canary.exists()
    pickle.loads(gadget)
    assert canary.exists(), "it would have been"


def test_where_no_checkpoint_is_good_the_run_is_refused_unless_it_may_start_over(lab: Lab, half: Run):
    bad = copied(half, "hopeless")
    for path in bad:
        flip(path / "model.safetensors")
    run = lab.run("hopeless", *WISH, *MANY)
    run.wait_for("FAILED", "COMPLETED")
    run.wait(lambda: show_job(lab.cluster, run.job).state == "FAILED")
    said = f"run {run.path}: none of its {len(bad)} checkpoints can be used (checkpoint {bad[0]}: model.safetensors is"
    reason = run.read("status.json")["reason"]
    assert run.state == "FAILED" and reason.startswith(said) and "checkpoint.restart_if_damaged=true" in reason
    assert show_job(lab.cluster, run.job).restarts == 0 and run.events("requeue") == []
    errors = [line for path in run.path.parent.glob("jobs/*.err") for line in path.read_text().splitlines()]
    assert f"error: {reason}" in errors and not any("Traceback" in line for line in errors), errors
    again = lab.again("hopeless", *WISH, *MANY, "checkpoint.restart_if_damaged=true")
    assert_same(again, lab.uninterrupted(*WISH))
    start = again.events("start")[-1]
    assert (start["from"], start["step"], len(start["passed_over"])) == (None, 0, len(bad))


def test_the_pointer_to_the_latest_is_a_hint_and_nothing_hangs_on_it(lab: Lab, half: Run):
    pointers: dict[str, str | None] = {"stale": half.checkpoints()[0].name, "absent": None, "dangling": "step-nowhere"}
    for name, content in pointers.items():
        latest = copied(half, name)[0].parent / "LATEST"
        latest.unlink()
        if content is not None:
            latest.write_text(content)
    newest = half.checkpoints()[-1]
    for run in [lab.run(name, *WISH, *MANY) for name in pointers]:
        assert_same(run, lab.uninterrupted(*WISH))
        start = run.events("start")[-1]
        assert (start["from"], start["step"]) == (newest.name, step_of(newest)) and "passed_over" not in start
        assert (run.path / "checkpoints" / "LATEST").read_text() == run.checkpoints()[-1].name
