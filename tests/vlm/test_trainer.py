"""The training loop: what a step's loss is, over micro-batches and ranks; what a run leaves; learning at all."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

from launcher.plan import make_plan
from launcher.runtime.curves import read_series
from launcher.runtime.errors import TrainingFailed, UserError
from launcher.runtime.job import run_job
from launcher.runtime.session import Session
from launcher.runtime.signals import StopFlag
from launcher.runtime.world import World
from tests.conftest import PHOTOS, picture, small, write_csv
from tests.vlm.conftest import run_ranks
from vlm.data.dataset import open_data
from vlm.data.loader import StepDataset
from vlm.flops import sample_flops
from vlm.model.vlm import token_loss_sum
from vlm.trainer import Trainer
from vlm.validation import contact_sheet, exact_match, mean_loss
from vlm.watch import LossWatch, require_finite


@pytest.fixture
def uneven(tmp_path):
    """Captions of very different lengths: a mean of means would be wrong by much."""
    rows = [(picture(i), "abc " * (1 + (i * 7) % 11)) for i in range(14)]
    return f"data.path={write_csv(tmp_path / 'uneven.csv', rows)}"


@pytest.fixture
def losses(values, tmp_path, uneven):
    """``losses("hardware.micro_batch=2", ranks=2)``: training losses by step, the validation loss, the weights' sum."""

    def run(*overrides, ranks=1):
        name = f"launch.name=run{len(list(tmp_path.glob('runs/*')))}"
        words = ("data=csv", uneven, "precision=fp32", "tracker=csv", "trainer.max_steps=12", name, *overrides)
        plan = make_plan(values(*small(*words)), default_name="x", cwd=tmp_path)
        if ranks == 1:
            run_job(plan, {}, StopFlag())
        else:
            run_ranks(plan, ranks)
        summary = json.loads(plan.rundir.summary.read_text())
        series = read_series(plan.rundir.metrics)
        return series["train/loss"][1], summary["val_loss"], summary["weights_sha256"]

    return run


def test_accumulation_does_not_change_the_loss(losses):
    whole, val, _ = losses("trainer.batch_size=5")
    for size in (1, 2, 3):
        split, split_val, _ = losses("trainer.batch_size=5", f"hardware.micro_batch={size}")
        assert split == pytest.approx(whole, abs=1e-4) and split_val == pytest.approx(val, abs=1e-4)


def test_two_and_three_ranks_train_as_one_does(losses):
    one, val, _ = losses("trainer.batch_size=5")
    for ranks in (2, 3):
        many, many_val, _ = losses("trainer.batch_size=5", "hardware.micro_batch=1", ranks=ranks)
        assert many == pytest.approx(one, abs=1e-4) and many_val == pytest.approx(val, abs=1e-4)


def test_over_many_steps_ranks_train_as_one_does_and_hold_the_same_weights(losses, tmp_path):
    words = ("trainer.max_steps=50", "trainer.batch_size=5", "model.dropout=0", "data.val_fraction=0.3")
    one, val, _ = losses(*words)
    for ranks in (2, 4):
        words = (*words, "task.target=tests.vlm.conftest:train_and_sum", f"launch.name=many{ranks}")
        many, many_val, weights = losses(*words, ranks=ranks)
        assert len(many) == 50 and many == pytest.approx(one, abs=1e-4) and many_val == pytest.approx(val, abs=1e-4)
        (run,) = (tmp_path / "runs" / f"many{ranks}").iterdir()
        assert [(run / f"sum{rank}").read_text() for rank in range(ranks)] == [weights] * ranks


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_share_out_the_validation_rows_each_once(config, uneven, size):
    settled = config("data=csv", uneven, "data.val_fraction=0.4")
    data = open_data(settled)
    trainer = Trainer(session_for(settled), data)
    seen = []

    class Recorded:
        def batch(self, rows):
            seen.extend(int(row) for row in rows)
            return data.rows.batch(rows)

    for rank in range(size):
        mean_loss(trainer.model, Recorded(), data.val, 2, World(rank=rank, size=size), trainer.precision)
    assert sorted(seen) == sorted(int(row) for row in data.val) and len(seen) > 3


def test_more_ranks_than_samples_in_the_last_batch(losses):
    one, _, _ = losses("trainer.batch_size=3", "data.val_fraction=0.2")  # 11 rows: the last batch has 2
    three, _, _ = losses("trainer.batch_size=3", "data.val_fraction=0.2", ranks=3)
    assert three == pytest.approx(one, abs=1e-4)


def test_the_same_run_gives_the_same_bits_whoever_prepares_the_data(losses):
    sums = {losses("model.dropout=0.2", "data.augment_shift=2", f"data.workers={n}")[2] for n in (0, 0, 2)}
    assert len(sums) == 1


def test_two_ranks_that_drop_units_go_on_to_the_same_bits(losses, tmp_path):
    words = ("model.dropout=0.3", "trainer.max_steps=8", "checkpoint.every_steps=4")
    _, _, whole = losses(*words, "launch.name=whole", ranks=2)
    losses(*words, "launch.name=resumed", ranks=2)
    (run,) = (tmp_path / "runs" / "resumed").iterdir()
    shutil.rmtree(run / "checkpoints" / "step-000000000008.a0001")
    (run / "status.json").write_text('{"state": "FAILED"}')
    steps, _, resumed = losses(*words, "launch.name=resumed", ranks=2)
    assert resumed == whole and len(steps) == 8


def session_for(config, world=None):
    """A session that holds what the trainer's own step needs."""
    session = object.__new__(Session)
    session.config, session.world = config, world or World()
    return session


def test_a_steps_loss_is_the_mean_over_target_tokens_in_gradients_too(config, uneven):
    settled = config("data=csv", uneven, "trainer.batch_size=4", "trainer.grad_clip=0")
    data = open_data(settled)
    step = StepDataset(data, settled, World())[0]
    trainer = Trainer(session_for(settled), data)
    reference = Trainer(session_for(settled), data).model
    total = count = 0
    for row in step.micro_batches[0].rows:
        one = data.rows.batch(np.array([int(row)]))
        total = total + token_loss_sum(reference(one.images, one.inputs), one.targets)
        count += int((one.targets >= 0).sum())
    (total / count).backward()
    loss = trainer.train_step(0, step)
    assert float(loss) == pytest.approx(float((total / count).detach()), rel=1e-5)
    for mine, theirs in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_to_the_norm_asked_for(config):
    settled = config("trainer.grad_clip=0.01")
    data = open_data(settled)
    trainer = Trainer(session_for(settled), data)
    trainer.train_step(0, trainer.steps[0])
    norm = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()
    assert 0.0099 < float(norm) <= 0.01001


def test_validation_counts_every_token_once(config, uneven):
    settled = config("data=csv", uneven, "data.val_fraction=0.4")
    data = open_data(settled)
    trainer = Trainer(session_for(settled), data)
    means = [mean_loss(trainer.model, data.rows, data.val, n, World(), trainer.precision) for n in (1, 2, 100)]
    assert means == pytest.approx([means[0]] * 3, rel=1e-5)


def test_epochs_see_every_row_once_each_with_a_smaller_last_batch(train):
    plan, _ = train("trainer.max_steps=null", "trainer.epochs=2", "trainer.batch_size=7", "trainer.log_samples=true")
    rows = list(csv.DictReader(plan.rundir.samples.read_text().splitlines()))
    per_epoch = len({r["sample_id"] for r in rows})
    assert len(rows) == 2 * per_epoch and per_epoch % 7 != 0
    for epoch in (rows[:per_epoch], rows[per_epoch:]):
        assert len({r["sample_id"] for r in epoch}) == per_epoch
    assert int(rows[-1]["step"]) == 2 * -(-per_epoch // 7)


def test_without_validation_rows_there_is_no_validation_loss(train):
    plan, outcome = train("data.val_fraction=0")
    assert outcome.summary["val_loss"] is None and outcome.summary["train_loss"] > 0
    assert "val/loss" not in read_series(plan.rundir.metrics)


def test_every_phase_of_a_step_is_timed(train):
    plan, _ = train()
    series = read_series(plan.rundir.metrics)
    for phase in ("data", "forward", "backward", "optimizer", "total"):
        assert len(series[f"time/{phase}"][1]) == 6 and all(s > 0 for s in series[f"time/{phase}"][1])
    header = plan.rundir.timings.read_text().splitlines()[0]
    assert header == "step,data_s,forward_s,backward_s,optimizer_s,total_s"


def test_speed_flops_and_memory_are_logged_and_stand_in_the_summary(train):
    plan, outcome = train("throughput.peak_tflops=0.002")
    series, summary = read_series(plan.rundir.metrics), outcome.summary
    for name in ("train/samples_per_s", "train/tokens_per_s", "train/mfu", "memory/peak_bytes"):
        assert len(series[name][1]) == 6 and all(value > 0 for value in series[name][1])
    assert summary["peak_tflops"] == 0.002 and summary["peak_memory_bytes"] >= series["memory/peak_bytes"][1][-1] > 1e7
    assert summary["tokens_per_s"] > 10 * summary["samples_per_s"], "a caption has more than ten tokens"
    assert summary["mfu"] == pytest.approx(summary["samples_per_s"] * summary["flops_per_sample"] / 2e9)
    assert summary["samples_per_s"] == series["train/samples_per_s"][1][-1]


def test_what_a_sample_costs_is_the_mean_over_the_rows_to_train_on(config, uneven):
    settled = config("data=csv", uneven)
    data = open_data(settled)
    trainer = Trainer(session_for(settled), data)
    texts = [len(data.rows.decoded.caption(int(row))) + 1 for row in data.train]
    each = [sample_flops(settled.model, data.tokenizer.vocab_size, text) for text in texts]
    assert trainer.flops_per_sample == pytest.approx(sum(each) / len(each))


def test_two_ranks_are_measured_against_two_devices_and_the_one_with_most_memory_is_named(plan):
    made = plan("throughput.peak_tflops=0.002")
    run_ranks(made, 2)
    summary = json.loads(made.rundir.summary.read_text())
    assert summary["mfu"] == pytest.approx(summary["samples_per_s"] * summary["flops_per_sample"] / 4e9)
    assert re.fullmatch(r"rank [01] on \S+", summary["peak_memory_rank"])
    assert all("peak memory: " in made.rundir.log(rank).read_text() for rank in range(2))


def test_the_peak_is_measured_or_left_out_and_what_is_learnt_is_the_same(losses, train):
    words = ("model.dropout=0.2", "data.augment_shift=2")
    measured, none = (losses(*words, f"throughput.peak_tflops={peak}") for peak in ("measure", "null"))
    assert measured == none
    _, outcome = train("throughput.peak_tflops=null")
    assert outcome.summary["mfu"] is None and outcome.summary["peak_tflops"] is None
    _, outcome = train("trainer.seed=1")
    assert outcome.summary["mfu"] > 0 and outcome.summary["peak_tflops"] > 0


def test_checkpoint_off_keeps_numbers_only(train):
    plan, outcome = train("checkpoint=off")
    assert outcome.state == "COMPLETED" and not plan.rundir.list_checkpoints("step")
    assert not plan.rundir.list_checkpoints("best")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(value):
    watch = LossWatch("cpu")
    watch.add(1, torch.tensor(1.0))
    with pytest.raises(TrainingFailed, match="step 2: the loss is"):
        watch.add(2, torch.tensor(value))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_loss_on_a_gpu_is_found_at_the_latest_when_the_watch_settles():
    watch = LossWatch("cuda")
    torch.cuda._sleep(10**8)  # the GPU is busy: the loss is not known yet
    watch.add(1, torch.tensor(float("nan"), device="cuda"))
    with pytest.raises(TrainingFailed, match="step 1: the loss is nan"):
        watch.settle()


def test_weights_that_are_not_finite_are_refused():
    model = torch.nn.Linear(1, 1)
    require_finite(model)
    torch.nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(TrainingFailed, match="weights that are not finite"):
        require_finite(model)


def test_a_step_that_ruins_the_weights_ends_the_run_even_if_it_is_the_last(plan):
    ruined = plan("optim.lr=1e38", "trainer.max_steps=1", "trainer.grad_clip=0", "data.val_fraction=0")
    with pytest.raises(TrainingFailed, match="weights that are not finite"):
        run_job(ruined, {}, StopFlag())
    assert not ruined.rundir.list_checkpoints("step") and ruined.rundir.state() == "FAILED"


def test_a_resumed_run_refuses_another_models_checkpoint(plan):
    first, second = plan("trainer.max_steps=3"), plan("trainer.max_steps=3", "model.n_embd=32")
    run_job(first, {}, StopFlag())
    second.rundir.path.mkdir(parents=True)
    shutil.copytree(first.rundir.checkpoints, second.rundir.checkpoints)
    with pytest.raises(UserError, match="is not what its place says"):
        run_job(second, {}, StopFlag())


def test_exact_match_and_its_contact_sheet():
    pairs = [("a", "a"), ("b\0 long " * 30, "c")]
    assert exact_match(pairs) == 0.5 and exact_match([]) == 0
    sheet = contact_sheet(np.zeros((2, 3, 16, 16), np.uint8), pairs)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3 and sheet.shape[0] == 2 * 102


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch
def test_a_compiled_model_learns_the_same(losses):
    eager, _, _ = losses()
    compiled, _, _ = losses("trainer.compile=true")
    assert compiled == pytest.approx(eager, abs=1e-3)


@pytest.mark.slow
def test_photographs_of_a_users_csv_are_learnt_by_heart(command, tmp_path):
    """The command of the README, on 24 real pictures: PNG, JPEG and WebP, grey and palette too."""
    done = command("-m", "launcher.run", "data=csv", f"data.path={PHOTOS}", "data.val_fraction=0", timeout=600)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "tiny-csv").iterdir()
    assert json.loads((run / "summary.json").read_text())["train_loss"] < 0.1
    scored = json.loads(command("-m", "vlm", "evaluate", str(run), "--json").stdout)
    assert scored["splits"]["train"]["rows"] == 24 and scored["splits"]["train"]["exact"] >= 22
