"""A real disk that is full costs no run its last good checkpoint, and is warned of before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.launcher.runtime.checkpoint.test_writing import may_mount

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not may_mount(), reason="no mounting here")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What ``tests.vlm.full_disk`` says of its runs on a tmpfs of four megabytes."""
    disk, cache = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("cache")
    mount = f'mount -t tmpfs -o size=4m tmpfs "{disk}" && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    words += [sys.executable, "-m", "tests.vlm.full_disk", str(disk), str(cache)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_dry_run_warns_where_the_runs_will_not_fit(found):
    assert found["warned"].startswith("warning: the runs will not fit in ") and found["warned"].count("\n") == 1
    assert found["not_warned"] == ""


def test_training_goes_on_and_the_last_good_state_stays(found):
    run, whole = found["passing"], found["whole"]
    assert run["seen"] == {"5": [4, 2], "9": [4, 2]}, "what was there is untouched, every byte of it"
    assert run["state"] == "COMPLETED" and run["saved"] == [12, 10] and run["litter"] == []
    assert run["failures"] >= 3 and whole["failures"] == 0
    assert (run["weights"], run["loss"]) == (whole["weights"], whole["loss"])


def test_a_disk_that_stays_full_ends_the_run_which_goes_on_bit_for_bit_once_there_is_room(found):
    gave_up, again, whole = found["gave_up"], found["again"], found["whole"]
    assert gave_up["state"] == "FAILED" and "No space left on device" in gave_up["problem"]
    assert "\n" not in gave_up["problem"] and gave_up["saved"] == [4, 2] and gave_up["litter"] == []
    assert again["state"] == "COMPLETED" and again["saved"] == [12, 10]
    assert (again["weights"], again["loss"]) == (whole["weights"], whole["loss"])
