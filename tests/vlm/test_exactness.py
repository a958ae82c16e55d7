"""Stopped anywhere, continued exactly: a run that was asked to stop ends like the one that never was."""

from __future__ import annotations

import csv
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from _pytest.monkeypatch import derive_importpath

from launcher.plan import make_plan
from launcher.runtime.curves import read_series
from launcher.runtime.errors import Stopped, UserError
from launcher.runtime.job import run_job
from launcher.runtime.plan import Plan
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from tests.conftest import picture, small, write_csv
from tests.launcher.runtime.test_distributed import free_port
from vlm.data.dataset import open_data
from vlm.trainer import Trainer
from vlm.validation import mean_loss

pytestmark = pytest.mark.slow

STEP, MICRO_BATCH = "vlm.trainer.Trainer.train_step", "vlm.trainer.Trainer._loss_of"
VALIDATION_BATCH, PICTURE = "vlm.validation.token_loss_sum", "vlm.data.cache.read_row"
STEPS = 9
CLOCKED = ("train/samples_per_s", "train/tokens_per_s", "train/mfu")

# Every third step validates, in batches of one; 36 rows train, so that an epoch ends in the middle of a batch.
RUN = (
    f"trainer.max_steps={STEPS}", "trainer.batch_size=5", "trainer.val_batch_size=1", "trainer.log_samples=true",
    "model.dropout=0.3", "data.augment_shift=2", "data.augment_flip=true", "precision=fp32", "tracker=csv",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a rank hears SIGUSR2: as it calls ``function`` for the ``count``-th time (from 1) in its attempt."""

    function: str
    count: int
    rank: int = 0


@contextmanager
def asked_to_stop(place: Place | None, rank: int = 0) -> Iterator[None]:
    """The block's process is asked to stop at ``place``."""
    with pytest.MonkeyPatch.context() as patch:
        if place is not None and place.rank == rank:
            name, owner = derive_importpath(place.function, raising=True)
            function, calls = getattr(owner, name), iter(range(1, 10**9))

            def counted(*args: Any, **kwargs: Any) -> Any:
                if next(calls) == place.count:
                    os.kill(os.getpid(), signal.SIGUSR2)
                return function(*args, **kwargs)

            patch.setattr(owner, name, counted)
        yield


def attempt(plan: Plan, place: Place | None = None, ranks: int = 1) -> int:
    """One attempt of ``plan``, asked to stop at ``place``; returns its exit code.

    Several ranks average over gloo, as ranks on several nodes do.
    """
    if ranks == 1:
        _train(plan, {}, place)
    else:
        multiprocessing.spawn(_rank, (plan, ranks, free_port(), place), nprocs=ranks)
    return int(plan.rundir.attempt_events()[-1]["code"])


def _train(plan: Plan, env: dict[str, str], place: Place | None) -> None:
    flag = StopFlag()
    flag.install()
    with asked_to_stop(place, int(env.get("RANK", 0))):
        run_job(plan, env, flag)


def _rank(rank: int, plan: Plan, size: int, port: int, place: Place | None) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm.trainer.share_memory", lambda model, world: False)
        _train(plan, {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}, place)


@pytest.fixture
def planned(values, tmp_path, own_signals):
    """``planned("model.dropout=0")``: a plan in a folder of its own."""

    def made(*overrides: str, fp16: bool = False) -> Plan:
        name = f"launch.name=run{len(list(tmp_path.glob('runs/*')))}"
        plan = make_plan(values(*small(*RUN, name, *overrides)), default_name="x", cwd=tmp_path)
        plan.rundir.path.mkdir(parents=True)
        if not fp16:
            return plan
        # A user is told to take bf16 on a CPU; here it is the loss scale's arithmetic that counts.
        changed = plan.to_json()
        changed["science"]["precision"]["kind"] = "fp16"
        return Plan.from_json(changed)

    return made


def samples(plan: Plan) -> Counter[tuple[str, str]]:
    """How often each sample was trained on in each step."""
    return Counter(
        (row["step"], row["sample_id"]) for row in csv.DictReader(plan.rundir.samples.read_text().splitlines())
    )


def numbers(plan: Plan) -> dict[tuple[str, int], list[float]]:
    """All values recorded of each curve at each step, but for those of the clock."""
    found: dict[tuple[str, int], list[float]] = {}
    for name, (steps, values) in read_series(plan.rundir.metrics).items():
        if not name.startswith(("time/", "ranks/", "memory/")) and name not in CLOCKED:
            for step, value in zip(steps, values, strict=True):
                found.setdefault((name, step), []).append(value)
    return found


def results(plan: Plan) -> dict[str, Any]:
    """What two runs that trained alike have in common."""
    names = ("status", "step", "train_loss", "val_loss", "best_val_loss", "weights_sha256", "val_exact_match")
    summary = plan.rundir.read(plan.rundir.summary)
    assert summary is not None
    best = [path.name.partition(".")[0] for path in plan.rundir.list_checkpoints("best")]
    return {name: summary[name] for name in names} | {"best": best, "numbers": numbers(plan)}


def assert_same(plan: Plan, whole: Plan) -> None:
    """``plan`` ended like ``whole``: the same bits, each value and each sample once."""
    assert results(plan) == results(whole)
    assert all(len(values) == 1 for values in numbers(plan).values())
    assert {name for name, _ in numbers(plan)} >= {"train/loss", "val/loss"}
    assert plan.rundir.samples.read_bytes() == whole.rundir.samples.read_bytes()


PLACES = {
    "in the middle of an epoch": (Place(STEP, 4), 4, ()),
    "at the end of an epoch": (Place(STEP, 8), 8, ()),
    "at the last step": (Place(STEP, STEPS), STEPS, ()),
    "between micro-batches": (Place(MICRO_BATCH, 3 * 3 + 2), 4, ("hardware.micro_batch=2",)),
    "between micro-batches of a step that validates": (Place(MICRO_BATCH, 3 * 2 + 2), 3, ("hardware.micro_batch=2",)),
    "in a validation": (Place(VALIDATION_BATCH, 2), 3, ()),
    "in a validation's last batch": (Place(VALIDATION_BATCH, 4), 3, ()),
    "in the last validation": (Place(VALIDATION_BATCH, 4 * 2 + 2), STEPS, ()),
    "before captions": (Place("vlm.trainer.Trainer._caption_sheet", 1), 4, ()),
    "as a sample is drawn": (Place("vlm.data.loader.StepDataset.__getitem__", 5), 5, ()),
}


@pytest.mark.parametrize(("place", "step", "words"), PLACES.values(), ids=PLACES.keys())
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(planned, place, step, words):
    whole, plan = planned(*words), planned(*words)
    assert attempt(whole) == 0
    assert attempt(plan, place) == 75
    assert plan.rundir.attempt_events()[-1]["step"] == step
    assert attempt(plan) == 0
    assert_same(plan, whole)


def test_a_run_stopped_at_every_step_and_in_every_validation_goes_on_to_the_same_bits(planned):
    whole, plan = planned(), planned()
    attempt(whole)
    stops = 0
    for step in range(1, STEPS + 1):
        assert attempt(plan, Place(STEP, 1)) == 75  # after the validation that the attempt before owes
        assert plan.rundir.attempt_events()[-1]["step"] == step
        if step % 3 == 0:
            assert attempt(plan, Place(VALIDATION_BATCH, 1 + step // 3)) == 75
            assert plan.rundir.attempt_events()[-1]["step"] == step
            stops += 1
    assert stops == 3 and attempt(plan) == 0
    assert_same(plan, whole)


def test_a_validation_given_up_again_is_still_owed(planned):
    whole, plan = planned(), planned()
    attempt(whole)
    for _ in range(3):
        assert attempt(plan, Place(VALIDATION_BATCH, 1)) == 75
        assert plan.rundir.attempt_events()[-1]["step"] == 3
        assert ("val/loss", 3) not in numbers(plan)
    assert attempt(plan) == 0
    assert_same(plan, whole)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_whoever_prepares_the_data_before_and_after_the_stop(planned, before, after):
    whole, plan = planned(), planned(f"data.workers={before}")
    attempt(whole)
    assert attempt(plan, Place(STEP, 4)) == 75
    changed = plan.to_json()
    changed["execution"]["task"]["data"]["workers"] = after
    plan = Plan.from_json(changed)
    assert attempt(plan) == 0
    assert_same(plan, whole)


@pytest.mark.parametrize("step", [2, 4, 5, 6])
def test_the_loss_scale_of_fp16_goes_on_with_the_steps_that_overflow(planned, step):
    words = ("precision.init_scale=1e6", "precision.growth_interval=1", "hardware.micro_batch=2")
    whole, plan = planned(*words, fp16=True), planned(*words, fp16=True)
    attempt(whole)
    scales = read_series(whole.rundir.metrics)["train/loss_scale"][1]
    pairs = list(zip([1e6, *scales], scales, strict=False))
    assert any(new < old for old, new in pairs) and any(new > old for old, new in pairs)  # it overflowed, it grew
    assert attempt(plan, Place(STEP, step)) == 75
    assert attempt(plan) == 0
    assert_same(plan, whole)


def test_a_run_stopped_while_its_pictures_are_decoded_leaves_nothing_and_starts_anew(planned, tmp_path):
    plan = planned()
    with pytest.raises(Stopped, match="before there was anything to save"):
        attempt(plan, Place(PICTURE, 7))
    assert plan.rundir.attempt_events()[-1]["code"] == 76 and plan.rundir.state() == "PREEMPTED"
    assert not list(tmp_path.glob("cache/decoded/*px")) and not list(tmp_path.glob("cache/**/.tmp-*"))
    assert attempt(plan) == 0
    whole = planned()
    attempt(whole)
    assert_same(plan, whole)


def test_other_data_than_before_the_stop_is_refused(planned, tmp_path):
    rows = [(picture(i), f"caption {i}") for i in range(20)]
    plan = planned("data=csv", f"data.path={write_csv(tmp_path / 'data.csv', rows)}")
    assert attempt(plan, Place(STEP, 2)) == 75
    (captions,) = tmp_path.glob("cache/decoded/*/captions.u8")
    whole = captions.read_bytes()
    captions.write_bytes(whole.replace(b"caption 7", b"capTion 7"))
    with pytest.raises(
        UserError, match=r"data\.csv: the data have changed since the checkpoint of step 2 .*data\.path"
    ):
        attempt(plan)
    captions.write_bytes(whole)
    plan.rundir.write_status(state="PREEMPTED")
    assert attempt(plan) == 0


@pytest.mark.parametrize("part", ["picture_ids.v16", "captions.u8", "caption_ends.i64"])
def test_the_fingerprint_of_data_is_that_of_its_pictures_and_captions(config, part):
    settled = config()
    data = open_data(settled)
    again = open_data(settled)
    assert data.fingerprint == again.fingerprint and len(data.fingerprint) == 32
    (file,) = Path(settled.data.cache_dir).glob(f"decoded/*/{part}")
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert open_data(settled).fingerprint != data.fingerprint


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_ask_equally_often_in_a_validation_and_give_it_up_after_the_same_batch(config, size):
    settled = config("data.val_fraction=0.3")
    data = open_data(settled)
    model, precision = _parts_of(settled, data)

    def validated(rank: int, yes_at: int) -> tuple[float | None, int]:
        asked = []

        def should_stop() -> bool:
            asked.append(rank)
            return len(asked) == yes_at

        world = World(rank=rank, size=size)
        return mean_loss(model, data.rows, data.val, 2, world, precision, should_stop), len(asked)

    (count,) = {validated(rank, 0)[1] for rank in range(size)}
    assert count == -(-len(data.val) // (2 * size)) + 1
    for yes_at in range(1, count + 1):
        assert {validated(rank, yes_at) for rank in range(size)} == {(None, yes_at)}
    model.train()
    validated(0, 1)
    assert model.training


def _parts_of(config: Any, data: Any) -> tuple[Any, Any]:
    from tests.vlm.test_trainer import session_for

    trainer = Trainer(session_for(config), data)
    return trainer.model, trainer.precision


# Several ranks, joined by gloo


@pytest.mark.parametrize("ranks", [3, 4])
def test_three_ranks_or_more_that_drop_units_go_on_to_the_same_bits(planned, ranks):
    words = ("hardware.micro_batch=1",)
    whole, plan = planned(*words), planned(*words)
    assert attempt(whole, ranks=ranks) == 0
    assert attempt(plan, Place(STEP, 4, rank=1), ranks=ranks) == 75
    assert 4 <= plan.rundir.attempt_events()[-1]["step"] <= 5
    assert attempt(plan, ranks=ranks) == 0
    assert_same(plan, whole)


def test_ranks_stopped_while_they_warm_up_or_validate_go_on_to_the_same_bits(planned):
    whole, plan = planned(), planned()
    assert attempt(whole, ranks=3) == 0
    assert attempt(plan, Place(MICRO_BATCH, 1, rank=2), ranks=3) == 76  # nothing was there to be saved
    assert not plan.rundir.samples.read_text().splitlines()[1:] and not plan.rundir.list_checkpoints("step")
    assert attempt(plan, Place(VALIDATION_BATCH, 1, rank=1), ranks=3) == 75
    assert plan.rundir.attempt_events()[-1]["step"] == 3 and ("val/loss", 3) not in numbers(plan)
    assert attempt(plan, Place(MICRO_BATCH, 1), ranks=3) == 75
    assert plan.rundir.attempt_events()[-1]["step"] == 3
    assert attempt(plan, ranks=3) == 0
    assert_same(plan, whole)


def test_from_four_ranks_to_two_and_back_no_sample_is_lost_or_repeated(planned):
    words = ("model.dropout=0",)  # each rank drops other units: with dropout the losses of other ranks are others
    whole, plan = planned(*words), planned(*words)
    assert attempt(whole, ranks=4) == 0
    assert attempt(plan, Place(STEP, 3, rank=3), ranks=4) == 75
    assert attempt(plan, Place(STEP, 2), ranks=2) == 75
    assert attempt(plan, ranks=4) == 0
    assert samples(plan) == samples(whole) and set(samples(plan).values()) == {1}
    found, expected = numbers(plan), numbers(whole)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-4), key


def test_the_places_of_these_tests_are_reached(planned):
    """A place that no call reaches would let a test pass without a stop."""
    seen: Counter[str] = Counter()

    def counting(function: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            seen[function] += 1
            return inner(*args, **kwargs)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for function in (STEP, MICRO_BATCH, VALIDATION_BATCH, PICTURE):
            name, owner = derive_importpath(function, raising=True)
            patch.setattr(owner, name, counting(function, getattr(owner, name)))
        attempt(planned())
    assert seen[STEP] == seen[MICRO_BATCH] == STEPS and seen[VALIDATION_BATCH] == 4 * 3 and seen[PICTURE] == 40
