"""A task of one's own, a function or a program, on a real Slurm: preempted, out of time or killed it ends the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.faults import preempt
from tests.integration.lab import Lab, Run, redone

EXAMPLE = Path(__file__).parents[1] / "own_task"
COMMON = ("hydra/launcher=submitit_slurm", "site=disposable", "site.slurm_conf=null", "hardware.device=cpu")
SPIRALS = (*COMMON, "task=spirals", "steps=3000", "hardware.nodes=2", "checkpoint.every_steps=200", "log_every=10")
COUNTING = (*COMMON, "task=counting", "steps=400", "hardware.nodes=2")

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm_installed")]


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A user whose repository is the example's folder."""
    home = tmp_path_factory.mktemp("own") / "home"
    shutil.copytree(EXAMPLE, home)
    return Lab(cluster, home)


def begin(lab: Lab, name: str, *words: str) -> Run:
    done = lab.type("launcher.run", *words, f"launch.name={name}")
    assert done.returncode == 0, done.stdout + done.stderr
    return lab.found(name)


def ended(run: Run) -> dict[str, object]:
    run.wait_for("COMPLETED", "FAILED", "CANCELLED")
    assert run.state == "COMPLETED", run.story()
    return run.read("summary.json")


def hold_until_warned(run: Run) -> None:
    """Keep its ranks still until Slurm has told each of them that the time limit is near."""
    ranks = run.ranks().values()
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    run.wait(lambda: all(is_pending(pid, signal.SIGUSR2) for pid in ranks))
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the signal waits to be delivered (proc(5), ShdPnd)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # Slurm lets go on whom it warns: it has saved and is gone
        return True
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:")]
    return bool(mask >> (number - 1) & 1)


def test_the_example_ends_with_the_same_bits_preempted_out_of_time_and_killed(lab: Lab):
    whole = begin(lab, "whole", *SPIRALS)
    expected = ended(whole)
    preempted = begin(lab, "preempted", *SPIRALS)
    preempted.wait_for_step(500)
    preempt(lab.cluster, preempted.job)
    killed = begin(lab, "killed", *SPIRALS)
    killed.wait_for_step(700)
    killed.kill(1, signal.SIGKILL)
    late = begin(lab, "late", *SPIRALS, "hardware.time_min=1", "hydra.launcher.signal_delay_s=15")
    late.wait_for_step(300)
    hold_until_warned(late)
    for run in (preempted, killed, late):
        summary = ended(run)
        assert summary["weights_sha256"] == expected["weights_sha256"], run.story()
        assert summary["accuracy"] == expected["accuracy"]
    assert redone(preempted) == 0 == redone(late) and redone(killed) <= 200 + 10, killed.story()
    assert [event["reason"] for event in preempted.events("requeue")] == ["preempted"]
    assert {event["reason"] for event in late.events("requeue")} == {"out of time"}, late.story()
    assert [event["reason"] for event in killed.events("requeue")] == ["broke down: a rank was killed (SIGKILL)"]


def test_a_program_is_asked_to_save_and_goes_on(lab: Lab):
    run = begin(lab, "counting", *COUNTING)
    run.wait_for_step(50)
    preempt(lab.cluster, run.job)
    summary = ended(run)
    assert (summary["step"], summary["total"]) == (400, 400 * 401 // 2), "each step once"
    assert redone(run) == 0 and [event["reason"] for event in run.events("requeue")] == ["preempted"]
    counted = [json.loads(line) for line in (run.path / "ranks.jsonl").read_text().splitlines()]
    assert {(line["rank"], line["size"]) for line in counted} == {(0, 2), (1, 2)}
    assert len({line["meeting"] for line in counted if line["attempt"] == 1}) == 1, "all ranks are told one port"
