"""TensorBoard, read back by TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from launcher.runtime.rundir import RunDir
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.trackers import About, start_trackers
from launcher.runtime.trackers.tensorboard import TensorBoard

with warnings.catch_warnings():  # tensorboard's own protobuf
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as AsServed
    from tensorboard.plugins.hparams import plugin_data_pb2

SCIENCE = {"optim": {"lr": 0.5, "kind": "adamw"}, "flip": True, "sizes": [1, 2], "note": None}
SUMMARY = {"train_loss": 2.0, "val_loss": 1.5, "best_val_loss": None, "samples_per_s": 10.0, "weights_sha256": "ab"}


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def opened(rundir, step=0):
    return TensorBoard(rundir, {"optim": {"lr": 0.5}}, SCIENCE, step)


def read(rundir):
    events = EventAccumulator(str(rundir.tensorboard), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(rundir, name):
    return [(event.step, event.value) for event in read(rundir).Scalars(name)]


def texts(rundir, name):
    found = read(rundir).Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def test_numbers_are_scalars(rundir):
    board = opened(rundir)
    board.log({"train/loss": 2.0, "val/loss": 4}, 1)
    board.log({"train/loss": 1.5}, 2)
    board.finish({})
    assert scalars(rundir, "train/loss") == [(1, 2.0), (2, 1.5)]
    assert scalars(rundir, "val/loss") == [(1, 4.0)]


def test_a_text_and_the_config_are_texts(rundir):
    board = opened(rundir)
    board.log({"samples/note": "hello é"}, 3)
    board.finish({})
    assert texts(rundir, "samples/note") == [(3, "hello é")]
    [(step, config)] = texts(rundir, "config")
    assert step == 0
    assert json.loads(config.removeprefix("```json\n").removesuffix("\n```")) == {"optim": {"lr": 0.5}}


def test_a_picture_is_the_same_picture(rundir):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    board = opened(rundir)
    board.log({"samples/captions": picture}, 4)
    board.finish({})
    [event] = read(rundir).Images("samples/captions")
    assert (event.step, event.width, event.height) == (4, 7, 5)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), picture)


def hparams(rundir):
    """What the HParams table shows as this run's settings."""
    content = read(rundir).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_science_and_final_numbers_are_a_row_of_hparams_in_the_run_itself(rundir):
    board = opened(rundir)
    board.log({"train/loss": 2.0}, 1)
    board.finish(SUMMARY)
    expected = {"optim.lr": 0.5, "optim.kind": "adamw", "flip": True, "sizes": "[1, 2]", "note": "null"}
    assert hparams(rundir) == expected
    finals = {name: scalars(rundir, name)[0][1] for name in read(rundir).Tags()["scalars"] if name.startswith("final/")}
    assert finals == {"final/train_loss": 2.0, "final/val_loss": 1.5, "final/samples_per_s": 10.0}
    assert all(path.is_file() for path in rundir.tensorboard.iterdir()), "a sub-run directory"


def test_a_run_that_did_not_finish_has_no_row_of_hparams(rundir):
    board = opened(rundir)
    board.finish({})
    assert "_hparams_/session_start_info" not in read(rundir).summary_metadata


@pytest.mark.parametrize("step", [0, 2])
def test_going_on_after_a_step_drops_what_an_earlier_attempt_wrote_beyond_it(rundir, step):
    first = opened(rundir)
    for at in (1, 2, 3, 4):
        first.log({"train/loss": float(at)}, at)
    first.finish({})
    second = opened(rundir, step)
    for at in range(step + 1, 6):
        second.log({"train/loss": 10.0 + at}, at)
    second.finish({})
    kept = [(at, float(at)) for at in range(1, step + 1)]
    assert scalars(rundir, "train/loss") == kept + [(at, 10.0 + at) for at in range(step + 1, 6)]
    served = AsServed(str(rundir.tensorboard)).Reload()  # as TensorBoard itself reads them
    assert [event.step for event in served.Tensors("config/text_summary")] == sorted({0, step})
    assert [event.step for event in served.Tensors("train/loss")] == [1, 2, 3, 4, 5]


def test_attempts_that_begin_in_one_second_are_read_in_their_order(rundir, monkeypatch):
    """Their files' names differ by the process alone, and as text 10 stands before 9."""
    time.sleep(1 - time.time() % 1)  # or the second would be another one by chance
    for pid, steps in ((9, (1, 2)), (10, (3, 4))):
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.os.getpid", lambda pid=pid: pid)
        board = opened(rundir, steps[0] - 1)
        for step in steps:
            board.log({"train/loss": float(step)}, step)
        board.finish({})
    assert [event.step for event in read(rundir).Scalars("train/loss")] == [1, 2, 3, 4]


def test_it_is_started_by_its_name(rundir):
    [tracker] = start_trackers(TrackerSettings(tensorboard=True), About(rundir, {}, {}))
    assert [queue.name for queue in tracker.queues] == ["tensorboard"]
    tracker.finish({})
    assert tracker.wait()
    assert [path.name for path in rundir.path.iterdir()] == ["tb"]
