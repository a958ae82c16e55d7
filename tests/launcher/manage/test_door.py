"""``python -m launcher``: what words stand for, the table of status, and cancelling."""

from __future__ import annotations

import json

import pytest

from launcher.__main__ import main
from launcher.manage.cancel import compact
from launcher.manage.targets import Target, below, named, one_run
from launcher.runtime.errors import ExitCode, UserError
from launcher.slurm_text import elements
from tests.launcher.made_sweep import MadeSweep
from tests.launcher.recorded_slurm import AWAY


@pytest.fixture
def slurm(recorded_slurm):
    return recorded_slurm


@pytest.fixture
def demo(tmp_path):
    """Three runs of job 12."""
    sweep = MadeSweep(tmp_path / "runs" / "demo")
    for index, run_id in enumerate(("aaa1", "aab2", "12f3")):
        sweep.run(run_id, "hardware.device=cpu", f"trainer.seed={index}")
    sweep.submitted("aaa1", "aab2", "12f3")
    return sweep


@pytest.fixture
def other(tmp_path):
    """A run without a job, in another sweep."""
    sweep = MadeSweep(tmp_path / "runs" / "other")
    sweep.run("bbb1")
    return sweep


def test_what_a_folder_stands_for(demo, other, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    assert below(runs) == [Target(demo.dir), Target(other.dir)]
    assert below(runs / "demo")[0].run_ids == ("aaa1", "aab2", "12f3")
    assert below(runs / "demo" / "aab2") == [Target(demo.dir, ("aab2",))]
    monkeypatch.chdir(runs / "demo" / "aab2")
    assert named(".", runs / "demo" / "aab2")[0].run_ids == ("aab2",)
    for nothing in (tmp_path / "nope", tmp_path):
        with pytest.raises(UserError, match="sweep"):
            below(nothing)


@pytest.mark.parametrize(
    ("word", "runs"),
    [
        ("aaa1", ("aaa1",)), ("aaa", ("aaa1",)), ("b", ("bbb1",)), ("12", ("aaa1", "aab2", "12f3")),
        ("12_1", ("aab2",)), ("12f", ("12f3",)), ("runs/demo", ("aaa1", "aab2", "12f3")), ("runs/demo/aab2", ("aab2",)),
    ],
)  # fmt: skip
def test_what_a_word_stands_for(slurm, demo, other, tmp_path, word, runs):
    assert [run for target in named(word, tmp_path) for run in target.run_ids] == list(runs)


@pytest.mark.parametrize(
    ("word", "told"), [("aa", "more than one run"), ("zz", "no run or job"), ("12_9", "no run"), ("a/b", "no such")]
)
def test_words_that_stand_for_nothing_or_too_much(slurm, demo, tmp_path, word, told):
    with pytest.raises(UserError, match=told):
        named(word, tmp_path)


def test_logs_want_one_run(slurm, demo, tmp_path):
    with pytest.raises(UserError, match="holds 3 runs"):
        one_run("12", tmp_path)


def test_the_same_job_number_of_two_clusters_is_the_newer_one(slurm, demo, other, tmp_path):
    other.submitted("bbb1", job="12")
    assert named("12", tmp_path) == [Target(other.dir, ("bbb1",))]


def test_status_is_a_table_on_stdout_and_counts_on_stderr(slurm, demo, capsys):
    demo.status("aaa1", "COMPLETED")
    demo.started("aaa1", job="12_0")
    slurm.queue(("12_1", "PENDING"), ("12_2", "PENDING"), reason="Resources", start="2026-11-22T06:00:00")
    assert main(["status"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["aaa1", "COMPLETED", "3", "1.25", "100", "1", "12_0", "n1", "trainer.seed=0"]
    assert lines[2] == ["aab2", "SUBMITTED", "12_1", "Resources", "2026-11-22", "06:00:00", "trainer.seed=1"]
    assert err == "1 COMPLETED, 2 SUBMITTED\n"
    assert "hardware.device" not in out and "\x1b" not in out


def test_status_as_json(slurm, demo, other, capsys):
    assert main(["status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["sweep"], row["run_id"], row["differs"]) for row in rows] == [
        ("demo", "aaa1", ["trainer.seed=0"]), ("demo", "aab2", ["trainer.seed=1"]),
        ("demo", "12f3", ["trainer.seed=2"]), ("other", "bbb1", []),
    ]  # fmt: skip


def test_one_run_shows_how_it_differs_from_its_sweep(slurm, demo, capsys):
    main(["status", "runs/demo/aab2"])
    assert "trainer.seed=1" in capsys.readouterr().out


def test_status_says_why_slurm_was_not_asked(slurm, demo, capsys):
    slurm.says("squeue", err=AWAY, code=1)
    assert main(["status", "runs/demo"]) == 0
    out, err = capsys.readouterr()
    assert out.count("SUBMITTED") == 3 and err.splitlines()[0].startswith("squeue: slurm_load_jobs error")


def test_status_of_nothing_is_one_line(slurm, capsys):
    assert main(["status"]) == ExitCode.USER_ERROR
    assert (
        capsys.readouterr().err
        == "error: runs: there is no such folder; name a sweep's, a run's, or a root of sweeps\n"
    )


def test_what_others_wrote_does_not_steer_the_terminal(slurm, demo, capsys):
    demo.status("aaa1", "FAILED", "a\x1b[2Jb\nc", step="x", loss=[1])
    demo.started("aaa1", job="12_0")
    assert main(["status"]) == 0
    assert "ab c" in capsys.readouterr().out


def test_watching_without_a_terminal_prints_a_line_for_each_change(slurm, demo, tmp_path, capsys, monkeypatch):
    for run_id in ("aab2", "12f3"):
        demo.status(run_id, "COMPLETED")
    slurm.queue(("12_0", "RUNNING"))
    file = demo.dir.run("aaa1").status
    monkeypatch.setattr("launcher.manage.status._LOOK_EVERY_S", 0.0)
    asked = tmp_path / "asked"
    slurm.does(
        "squeue", f"""echo >> {asked}; [ $(wc -l < {asked}) -gt 2 ] && echo '{{"state": "COMPLETED"}}' > {file}"""
    )
    assert main(["status", "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["2 COMPLETED, 1 RUNNING", "3 COMPLETED"]
    assert "2/3 runs" in lines[0] and "3/3 runs" in lines[1]


def test_cancel_notes_it_first_then_calls_scancel_once(slurm, demo, tmp_path, capsys):
    demo.status("aaa1", "COMPLETED")
    slurm.queue(("12_1", "PENDING"), ("12_2", "RUNNING"))
    slurm.does("scancel", f"grep -c cancelled {demo.dir.submissions} > {tmp_path}/noted")
    assert main(["cancel", "runs/demo", "12_1", str(demo.dir.path)]) == 0
    assert (tmp_path / "noted").read_text() == "1\n"
    assert slurm.called("scancel") == ["scancel --quiet 12_[1-2]"]
    assert demo.dir.read_cancelled() == {"12_1", "12_2"}
    assert capsys.readouterr().out == "cancelled 2 of runs/demo: 12_[1-2]\n"
    slurm.queue()
    main(["status"])
    assert capsys.readouterr().out.count("CANCELLED") == 2
    assert main(["cancel", "runs/demo"]) == 0
    assert "no job of theirs" in capsys.readouterr().err and len(slurm.called("scancel")) == 1


def test_cancel_dry_run_changes_nothing(slurm, demo, capsys):
    slurm.queue(("12_0", "PENDING"), ("12_1", "PENDING"), ("12_2", "RUNNING"))
    before = demo.dir.submissions.read_bytes()
    assert main(["cancel", "12", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would cancel 3 of runs/demo: 12_[0-2]\n".replace(
        "runs", str(demo.dir.path.parent)
    )
    assert slurm.called("scancel") == [] and demo.dir.submissions.read_bytes() == before


def test_cancel_without_slurm_changes_nothing_and_says_so(slurm, demo, capsys):
    slurm.says("squeue", err=AWAY, code=1)
    assert main(["cancel", "runs/demo"]) == ExitCode.USER_ERROR
    assert "nothing was cancelled" in capsys.readouterr().err and demo.dir.read_cancelled() == set()


def test_cancel_says_how_to_stop_a_run_of_this_machine(slurm, other, capsys):
    import os

    other.status("bbb1", "RUNNING")
    with other.dir.run("bbb1").lock():
        assert main(["cancel", "bbb1"]) == ExitCode.USER_ERROR
    assert f"kill -INT {os.getpid()}" in capsys.readouterr().err


def test_compact_and_elements_are_opposites():
    jobs = [*(f"12_{index}" for index in (0, 1, 2, 5, 9, 10)), "7", "13_4"]
    assert compact(jobs) == ["12_[0-2,5,9-10]", "7", "13_4"]
    assert [job for name in compact(jobs) for job in elements(name)] == jobs


@pytest.mark.parametrize("words", [[], ["nope"], ["logs"], ["status", "--nope"], ["logs", "a", "--rank", "-1"]])
def test_bad_usage(words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == ExitCode.USAGE


def test_cancel_ends_the_whole_chain_of_a_run_by_any_of_its_jobs(slurm, tmp_path, capsys):
    sweep = MadeSweep(tmp_path / "runs" / "chain")
    runs = ("aaa1", "bbb2")
    for run in runs:
        sweep.run(run)
    sweep.submitted(*runs)
    sweep.submitted(*runs, job="13", token="t2", follows="t1")
    sweep.submitted(*runs, job="14", token="t3", follows="t1")
    sweep.started("aaa1", "12_0")
    sweep.status("aaa1", "PREEMPTED")
    slurm.queue(("12_0", "PREEMPTED"), ("12_1", "RUNNING"), *((f"1{n}_{i}", "PENDING") for n in (3, 4) for i in (0, 1)))
    assert main(["cancel", "13_0"]) == 0
    assert slurm.called("scancel") == ["scancel --quiet 12_0 13_0 14_0"]
    assert sweep.dir.read_cancelled() == {"12_0", "13_0", "14_0"}
    assert sweep.dir.read_cancelled("t2") == {"13_0"}, "each job looks for its own submission's"
    slurm.queue(("12_1", "RUNNING"))
    capsys.readouterr()
    assert main(["status", "runs/chain", "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["CANCELLED", "RUNNING"]
