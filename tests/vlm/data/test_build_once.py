"""Building what runs share: asked to stop at any moment, nothing half-built stays and the next one builds it whole."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from launcher.runtime.errors import Stopped
from tests.conftest import picture, write_csv
from vlm.data.build_once import build_once, polled
from vlm.data.dataset import open_data


class StopAt:
    """A poll that says stop when it is asked for the ``count``-th time (from 1)."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == self.count:
            raise Stopped


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_dir()]


@pytest.mark.parametrize("kind", ["shapes", "csv"])
def test_data_stopped_at_each_poll_are_built_whole_by_the_next_one(config, tmp_path, kind):
    rows = [("no base64!" if i == 5 else picture(i), f"caption {i}") for i in range(30)]
    words = ("data=csv", f"data.path={write_csv(tmp_path / 'data.csv', rows)}") if kind == "csv" else ()
    settled = config(*words, "data.on_error=skip", "data.split_by=caption", "data.val_fraction=0.2")
    cache, threads = Path(settled.data.cache_dir), threading.active_count()
    never = StopAt(0)
    elsewhere = config(*words, "data.on_error=skip", "data.split_by=caption", "data.val_fraction=0.2",
                       f"data.cache_dir={tmp_path}/other")  # fmt: skip
    expected = open_data(elsewhere, poll=never)
    assert never.asked > len(expected.rows.decoded)
    stops = 0
    while True:
        try:
            data = open_data(settled, poll=StopAt(stops % never.asked + 1))
            break
        except Stopped:
            stops += 1
        assert threading.active_count() == threads and not list(cache.rglob(".tmp-*"))
    assert stops > 3 and data.fingerprint == expected.fingerprint
    assert (data.rows.decoded.images == expected.rows.decoded.images).all()
    assert len(folders(cache)) == len(folders(tmp_path / "other"))


def _hold(path: Path, held: object, done: object) -> None:
    with FileLock(path):
        held.set()
        done.wait(60)


def test_waiting_for_another_builder_ends_when_asked_to_stop_and_goes_on_when_it_is_done(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held, done = spawn.Event(), spawn.Event()
    folder = tmp_path / "cache" / "made"
    folder.parent.mkdir()
    other = spawn.Process(target=_hold, args=(folder.with_suffix(".lock"), held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(Stopped):
        build_once(folder, lambda aside: None, StopAt(3))
    assert not folder.exists()
    asked = iter(range(10**9))
    build_once(folder, lambda aside: None, lambda: done.set() if next(asked) == 2 else None)
    assert folder.exists() and next(asked) > 2
    other.join(60)
    assert other.exitcode == 0


def test_a_poll_comes_before_every_so_many_items():
    seen: list[object] = []
    for item in polled(range(7), lambda: seen.append("poll"), every=3):
        seen.append(item)
    assert seen == ["poll", 0, 1, 2, "poll", 3, 4, 5, "poll", 6]
