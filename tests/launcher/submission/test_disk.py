"""What a dry run says of the disk: a line for each kind of run, all of them together, and a warning."""

from __future__ import annotations

import time
from collections import namedtuple
from dataclasses import replace

import pytest

from launcher.plan import make_plan
from launcher.sizes import told
from launcher.submission import disk
from launcher.submission.disk import Room, in_all, show_disk
from launcher.submission.footprint import Need, Space, kinds_of
from vlm.config import TrainConfig

Disk = namedtuple("Disk", "f_bavail f_frsize f_favail f_files")


@pytest.fixture
def plan(values, tmp_path):
    """``plan("optim.lr=1", …)``: a plan of the task that comes along."""
    return lambda *words: make_plan(values(*words), default_name="sweep", cwd=tmp_path)


@pytest.fixture
def free(monkeypatch):
    """``free(bytes, files)``: what the disk of runs has left; no files: it does not count them."""
    return lambda n_bytes, files=None: monkeypatch.setattr(
        disk.os, "statvfs", lambda path: Disk(n_bytes // 4096, 4096, files or 0, 0 if files is None else files + 1)
    )


def test_a_line_for_each_kind_of_run_and_one_for_all(plan, tmp_path, capsys):
    small = [plan(f"trainer.seed={seed}") for seed in range(3)]
    show_disk(tmp_path / "runs", [*small, plan("model.n_embd=128")])
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.startswith("#  ")]
    assert [row[1] for row in rows] == ["3", "1"]
    assert "in all, all at once: " in out and f"free in {tmp_path / 'runs'}: " in out and err == ""
    assert not (tmp_path / "runs").exists()


def test_nothing_to_run_says_nothing(tmp_path, capsys):
    show_disk(tmp_path, [])
    assert capsys.readouterr() == ("", "")


def test_what_will_not_fit_is_said_beforehand(plan, free, tmp_path, capsys):
    free(10_000_000)
    show_disk(tmp_path, [plan()])
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith(f"warning: the runs will not fit in {tmp_path}: ")
    assert "are needed, 10.0 MB are free; see checkpoint.*, or launch.root=" in err
    assert f"free in {tmp_path}: 10.0 MB\n" in out


def test_files_may_run_out_before_bytes(plan, free, tmp_path, capsys):
    free(10**12, files=20)
    show_disk(tmp_path, [plan()])
    assert "files are needed, 20 are free" in capsys.readouterr().err


def test_a_task_without_footprint_is_said_to_be_unknown(plan, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(TrainConfig, "footprint")
    show_disk(tmp_path, [plan()])
    out = capsys.readouterr().out
    assert "not known" in out and "the task's config has no footprint()" in out


def test_runs_that_wait_for_others_do_not_take_their_most_at_once(plan):
    kinds = kinds_of([plan(f"trainer.seed={seed}", "checkpoint.at_end=weights") for seed in range(4)])
    (kind,) = kinds
    need = kind.need()
    assert in_all(kinds, Space(), None) == Need(need.fullest * 4, need.end * 4)
    assert in_all(kinds, Space(5, 1), 1) == Need(need.fullest + need.end * 3 + Space(5, 1), need.end * 4 + Space(5, 1))


def test_a_thousand_members_are_few_kinds_and_cost_little(plan):
    one = plan()
    science = [{**one.science, "optim": {**one.science["optim"], "lr": 1e-5 * n}} for n in range(1, 1001)]
    members = [replace(one, science=each) for each in science]
    began = time.process_time()
    (count,) = kinds_of(members).values()
    assert count == 1000 and time.process_time() - began < 2, "each is a fraction of a millisecond"


def test_a_folder_that_is_not_there_yet_is_where_it_will_be_made(tmp_path):
    assert Room.at(tmp_path / "a" / "b").free.bytes == pytest.approx(Room.at(tmp_path).free.bytes, rel=0.1)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (34_210_000, "34.2 MB"), (5e9, "5.0 GB"), (2.5e15, "2,500.0 TB")],
)
def test_bytes_as_people_read_them(n_bytes, text):
    assert told(n_bytes) == text
