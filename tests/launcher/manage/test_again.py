"""``launcher resume`` and ``launcher retry``: the same run goes on the way it was launched, or it is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.plan import Plan
from launcher.runtime.sweepdir import SweepDir
from tests.conftest import SMALL, picture, small, type_here, write_csv
from tests.integration.user import TASK
from tests.launcher.fake_slurm import FakeSlurm

TOY = ("task.target=toytask:train", "task.schema=toytask:Config", "tracker=none", "trainer.max_steps=1")
SLURM = (*TOY, "hydra/launcher=submitit_slurm", "launch.name=demo")


class Home:
    """A user's folder with a task in it, and another folder to type commands in; a fake Slurm on PATH."""

    def __init__(self, tmp_path: Path) -> None:
        self.slurm = FakeSlurm(tmp_path / "slurm")
        self.path, self.elsewhere = tmp_path / "my home", tmp_path / "elsewhere"
        for folder in (self.path, self.elsewhere):
            folder.mkdir()
        (self.path / "toytask.py").write_text(TASK)
        self.configs = tmp_path / "configs" / "seemore"
        self.env = self.slurm.env | {"XDG_CONFIG_HOME": str(self.configs.parent), "XDG_CACHE_HOME": str(tmp_path / "c")}
        self.env |= {"OMP_NUM_THREADS": "1"}

    def run(self, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """``python -m launcher.run``, typed at home."""
        done = type_here(self.path, self.env | env, *words)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def manage(self, *words: str, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """``python -m launcher``, typed elsewhere."""
        done = type_here(cwd or self.elsewhere, self.env, *words, door="launcher.__main__")
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    @property
    def sweep(self) -> SweepDir:
        """The one sweep."""
        (path,) = (self.path / "runs").iterdir()
        return SweepDir(path)

    def plans(self) -> list[dict[str, Any]]:
        """The plans of the newest submission."""
        newest = self.sweep.read_submissions()[-1]
        return [json.loads(line) for line in self.sweep.plans(newest.token).read_text().splitlines()]

    def ended(self, state: str, *runs: str) -> None:
        """Jobs of these runs (of all) began and ended so, by their own files; Slurm knows none of them any more."""
        for submission in self.sweep.read_submissions():
            for run, job in submission.jobs():
                if not runs or run in runs:
                    rundir = self.sweep.run(run)
                    rundir.add_attempt_event(
                        event="start", attempt=1, job_id=job, hosts=["n1"], time="2026-11-22T03:00"
                    )
                    rundir.write_status(state=state, step=0, reason="", heartbeat=0.0)
        self.slurm.end(state if state == "FAILED" else "COMPLETED")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def only(sweep: SweepDir) -> str:
    (run,) = sweep.list_runs()
    return run


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_run_that_failed_is_submitted_once_however_often_it_is_asked_for(home):
    home.run(*SLURM, "hydra.launcher.partition=low", "hydra.launcher.timeout_min=7", "launch.wait=false")
    home.ended("FAILED")
    first = home.manage("resume", str(home.sweep.path / only(home.sweep)))
    assert first.stdout.split()[:2] == ["SUBMITTED", "101"]
    script = Path(home.slurm.state["jobs"]["101"]["script"]).read_text()
    assert "--partition=low" in script and "--time=7" in script, "what was asked of Slurm is asked again"
    for again in (home.manage("resume", "101", cwd=home.path), home.manage("retry", "101", cwd=home.path)):
        assert again.stdout == f"SUBMITTED already: {home.sweep.path / only(home.sweep)} (job 101)\n"
    assert home.slurm.submitted == [1, 1] and len(home.sweep.list_runs()) == 1


def test_the_same_words_do_not_pile_up_from_retry_to_retry(home):
    home.run(*SLURM)
    (first,) = home.plans()
    recorded = []
    for _ in range(2):
        home.ended("FAILED")
        home.manage("retry", str(home.sweep.path))
        recorded.append(home.plans()[0]["overrides"])
    assert recorded[0] == recorded[1] and len(recorded[0]) == len(set(recorded[0]))
    assert set(first["overrides"]) - set(recorded[0]) == {"launch.name=demo"}  # said again, in quotes
    assert {plan["cwd"] for plan in (first, home.plans()[0])} == {str(home.path)}


def test_of_a_folder_what_failed_or_stopped_in_one_array_and_what_was_cancelled_when_named(home):
    home.run("-m", *SLURM, "trainer.seed=0,1,2,3,4")
    failed, stopped, cancelled, done, other = home.sweep.read_members()
    for state, run in (("FAILED", failed), ("FAILED", other), ("PREEMPTED", stopped), ("COMPLETED", done)):
        home.ended(state, run)
    home.slurm.end("CANCELLED", forget=True)
    home.slurm.set(accounting=False)
    dry = home.manage("retry", str(home.sweep.path), "--dry-run")
    assert [line.split()[2] for line in dry.stdout.splitlines()] == ["FAILED", "PREEMPTED", "FAILED"]
    assert home.slurm.submitted == [5]
    said = home.manage("retry", str(home.sweep.path))
    assert "left as they are: 1 CANCELLED, 1 COMPLETED; name a CANCELLED" in said.stderr
    assert home.slurm.submitted == [5, 3] and [p["run_id"] for p in home.plans()] == [failed, stopped, other]
    home.manage("retry", str(home.sweep.run(cancelled).path))
    assert home.slurm.submitted == [5, 3, 1] and home.plans()[0]["run_id"] == cancelled
    named = home.manage("retry", str(home.sweep.run(done).path))
    assert named.stdout == f"COMPLETED already: {home.sweep.run(done).path}\n"
    nothing = home.manage("retry", str(home.sweep.path))
    assert "4 SUBMITTED" in nothing.stderr and "nothing to retry" in nothing.stderr
    assert home.slurm.submitted == [5, 3, 1]


def test_a_relative_path_is_read_where_the_command_was_typed(home):
    data = write_csv(home.path / "data.csv", [(picture(i), f"picture number {i}") for i in range(12)])
    write_csv(home.elsewhere / "data.csv", [(picture(i), "another") for i in range(12)])
    home.run(*small("data=csv", "data.path=data.csv", "trainer.batch_size=2"), "hydra/launcher=submitit_slurm")
    run, before = only(home.sweep), home.plans()[0]
    home.ended("FAILED")
    home.manage("resume", f"../{home.path.name}/runs/{home.sweep.path.name}/{run}")
    after = home.plans()[0]
    assert after["run_id"] == run == only(home.sweep) and after["science"] == before["science"]
    assert str(data) in json.dumps(after) and str(home.elsewhere) not in json.dumps(after["execution"])
    assert (after["root"], after["name"]) == (before["root"], before["name"])
    home.ended("FAILED")
    write_csv(data, [(picture(i), "other words") for i in range(12)])
    refused = error_of(home.manage("resume", str(home.sweep.run(run).path), code=1))
    assert "data.digest" in refused and len(home.slurm.submitted) == 2


def test_a_default_that_changed_is_refused_by_name(home):
    (home.configs / "optim").mkdir(parents=True)
    mine = home.configs / "optim" / "mine.yaml"
    mine.write_text("name: adamw\nlr: 0.001\nweight_decay: 0.1\n")
    home.run("-m", *SLURM, "optim=mine", "trainer.seed=0,1")
    home.ended("FAILED")
    mine.write_text("name: adamw\nlr: 0.001\nweight_decay: 0.2\n")
    for words in (["retry", str(home.sweep.path)], ["retry", "--dry-run", str(home.sweep.path)]):
        refused = error_of(home.manage(*words, code=1))
        assert "optim.weight_decay 0.1 -> 0.2 (2 of 2 runs differ); nothing was started" in refused
        assert "python -m launcher.run" in refused and "optim.lr" not in refused
    assert home.slurm.submitted == [2] and len(home.sweep.list_runs()) == 2
    mine.unlink()
    assert "optim=mine: there is no such option" in error_of(home.manage("retry", str(home.sweep.path), code=1))


def test_a_sweep_that_was_extended_stays_one(home):
    words = (*TOY, "hydra/launcher=submitit_slurm")
    home.run("-m", *words, "optim.lr=1,2")
    home.run("-m", *words, "optim.lr=1,2,3", "+hydra.launcher.additional_parameters.hold=true")
    name = home.sweep.path.name
    home.ended("FAILED")
    home.manage("retry", "runs", cwd=home.path)
    assert home.sweep.path.name == name and sorted(home.slurm.submitted) == [1, 1, 2, 2], "the last one was held"
    scripts = [Path(job["script"]).read_text() for job in home.slurm.state["jobs"].values()]
    assert ["--hold" in text for text in scripts] == [False, True, False, True]
    assert home.plans()[0]["execution"]["checkpoint"]["at_end"] == "weights", "a member of a sweep stays one"


def test_a_site_that_the_environment_chose_is_chosen_again(home):
    (home.configs / "site").mkdir(parents=True)
    (home.configs / "site" / "mine.yaml").write_text("partition: low\nqos: fast\n")
    home.run(*SLURM, LAUNCHER_SITE="mine")
    home.ended("FAILED")
    home.manage("resume", str(home.sweep.run(only(home.sweep)).path))
    assert "--qos=fast" in Path(home.slurm.state["jobs"]["101"]["script"]).read_text()


@pytest.mark.parametrize("name", ["it's a=sweep, {of} [mine]", "null"])
def test_a_sweep_with_an_odd_name_is_found_again(home, name):
    home.run(*SLURM[:-1], f'launch.name="{name}"')
    home.ended("FAILED")
    home.manage("retry", str(home.sweep.path))
    assert home.slurm.submitted == [1, 1] and len(home.sweep.list_runs()) == 1


def test_a_sweep_that_was_moved_goes_on_where_it_stands(home):
    home.run(*SLURM)
    home.ended("FAILED")
    home.sweep.path.rename(home.sweep.path.with_name("moved"))
    home.manage("retry", str(home.sweep.path))
    assert home.plans()[0]["name"] == "moved" and home.slurm.submitted == [1, 1]


def test_a_folder_of_configs_that_was_named_is_looked_into_again(home):
    (home.path / "more" / "optim").mkdir(parents=True)
    (home.path / "more" / "optim" / "mine.yaml").write_text("name: adamw\nlr: 0.125\nweight_decay: 0.1\n")
    home.run("--config-dir", "more", "-m", *SLURM, "optim=mine", "trainer.seed=1,2")
    home.ended("FAILED")
    home.manage("retry", str(home.sweep.path))
    home.ended("FAILED")
    home.manage("retry", str(home.sweep.path))
    assert home.slurm.submitted == [2, 2, 2] and home.plans()[0]["science"]["optim"]["lr"] == 0.125


def test_a_cluster_that_the_environment_chose_is_chosen_again(home):
    conf = home.path.with_name("slurm.conf")
    conf.touch()
    home.run(*SLURM, SLURM_CONF=str(conf))
    home.ended("FAILED")
    home.manage("retry", str(home.sweep.path))
    assert [submission.slurm_conf for submission in home.sweep.read_submissions()] == [str(conf)] * 2


def test_an_older_plan_says_what_to_type(home):
    home.run(*SLURM)
    home.ended("FAILED")
    for file in (home.sweep.run(only(home.sweep)).plan, *home.sweep.plans("x").parent.glob("*.jsonl")):
        plan = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in plan.items() if k not in ("overrides", "cwd")}))
    assert Plan.read(home.sweep.run(only(home.sweep))).cwd == ""
    refused = error_of(home.manage("retry", str(home.sweep.path), code=1))
    assert "type the command that started it again, the last one was: python -m launcher.run task.target=" in refused
    assert home.slurm.submitted == [1]


def test_runs_of_several_folders_and_of_a_folder_that_is_gone(home):
    other = home.path.with_name("other")
    shutil.copytree(home.path, other)
    home.run(*SLURM, f"launch.root={home.path}/runs")
    done = type_here(other, home.env, *SLURM, f"launch.root={home.path}/runs", "trainer.seed=7")
    assert done.returncode == 0, done.stderr
    home.ended("FAILED")
    refused = error_of(home.manage("retry", str(home.sweep.path), code=1))
    assert "were launched in 2 folders" in refused and str(other) in refused
    shutil.rmtree(other)
    (run,) = [r for r in home.sweep.list_runs() if Plan.read(home.sweep.run(r)).cwd == str(other)]
    assert f"{other}: No such file" in error_of(home.manage("resume", str(home.sweep.run(run).path), code=1))
    assert home.slurm.submitted == [1, 1]


def test_words_that_cannot_be_followed(home):
    home.run("-m", *SLURM, "trainer.seed=0,1")
    home.ended("FAILED")
    sweep = str(home.sweep.path)
    assert "no run or job" in error_of(home.manage("resume", "zzz", code=1))
    assert "holds 2 runs" in error_of(home.manage("resume", sweep, code=1))
    assert "holds no run" in error_of(home.manage("retry", str(home.elsewhere), code=1))
    home.slurm.fault("squeue", "fail", times=9)
    assert "nothing was started" in error_of(home.manage("retry", sweep, code=1))
    home.env["PATH"] = "/nowhere"
    assert "PATH" in error_of(home.manage("retry", sweep, code=1))
    assert home.slurm.submitted == [2]


def test_a_controller_that_goes_away_while_it_submits_leaves_them_for_the_next_time(home):
    home.run(*SLURM)
    home.ended("FAILED")
    home.slurm.fault("sbatch", "kill", when="after")  # of sbatch's caller, once Slurm has the job
    done = type_here(home.elsewhere, home.env, "retry", str(home.sweep.path), door="launcher.__main__")
    assert done.returncode == -signal.SIGKILL
    assert home.slurm.submitted == [1, 1]
    again = home.manage("retry", str(home.sweep.path))
    assert "1 done or queued already" in again.stderr and home.slurm.submitted == [1, 1], "adopted, not submitted again"


INTERRUPTED = f"""
import os, sys, threading, time
from pathlib import Path
def watch():
    while not any(f.read_text().count(",train,loss,") >= 5 for f in Path("runs").rglob("metrics.csv")):
        time.sleep(0.01)
    os.kill(os.getpid(), {int(signal.SIGTERM)})
threading.Thread(target=watch, daemon=True).start()
from launcher.run import main
sys.exit(main())
"""
"""Sends SIGTERM to itself once a few steps are on disk: an event, not a delay."""


def manage_here(home: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m launcher`` in a process of its own, which may train."""
    folder.mkdir(exist_ok=True)
    env = os.environ | {"XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, "-m", "launcher", *words)
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_of_this_process_goes_on_in_this_process(command, tmp_path):
    data = write_csv(tmp_path / "data.csv", [(picture(i), f"picture number {i}") for i in range(12)])
    words = small("data=csv", f"data.path={data.name}", "trainer.max_steps=200", "trainer.val_every=null")
    words = [w for w in words if not w.startswith("trainer.batch_size")] + ["trainer.batch_size=2"]
    stopped = command("-c", INTERRUPTED, *words)
    assert stopped.returncode == 75, stopped.stderr
    (run,) = (tmp_path / "runs").glob("*/*")
    step = json.loads((run / "status.json").read_text())["step"]
    assert 0 < step < 200
    done = manage_here(tmp_path, tmp_path / "elsewhere", "resume", str(run))
    assert done.returncode == 0 and f"COMPLETED: {run}" in done.stdout, done.stderr
    assert list((tmp_path / "runs").glob("*/*")) == [run] and not list((tmp_path / "elsewhere").iterdir())
    starts = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
    assert [e["attempt"] for e in starts if e["event"] == "start"] == [1, 2]
    steps = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines() if ",train,loss," in line]
    assert steps == [str(step) for step in range(1, 201)], "none is missing, none was done twice"
    again = manage_here(tmp_path, tmp_path / "elsewhere", "resume", str(run))
    assert (again.returncode, again.stdout) == (0, f"COMPLETED already: {run}\n")


def test_a_run_whose_process_was_killed_goes_on_at_once_and_one_that_is_trained_is_left_alone(command, tmp_path):
    (tmp_path / "toytask.py").write_text(TASK)
    words = (*TOY[:-1], "trainer.max_steps=3", "launch.name=one", "checkpoint.every_steps=1")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "launcher.run", *words], cwd=tmp_path, env=env)
    try:
        while not any(len(f.read_text().splitlines()) == 2 for f in tmp_path.glob("runs/one/*/said.0")):
            assert process.poll() is None
            time.sleep(0.01)
        (run,) = (tmp_path / "runs" / "one").iterdir()
        going = manage_here(tmp_path, tmp_path / "elsewhere", "resume", str(run))
        assert (going.returncode, going.stdout) == (0, f"RUNNING already: {run}\n"), going.stderr
    finally:
        process.kill()
        process.wait()
    (run.parent / "go").touch()
    done = manage_here(tmp_path, tmp_path / "elsewhere", "retry", str(run.parent))
    assert done.returncode == 0 and f"COMPLETED: {run}" in done.stdout, done.stderr
    assert [line.split()[0] for line in (run / "said.0").read_text().splitlines()] == ["1", "2", "2", "3"]


def test_members_of_a_sweep_here_go_on_one_after_the_other(command, tmp_path):
    words = [*SMALL, "trainer.batch_size=4,38", "data.val_fraction=0.5", "data.split_by=image", "launch.name=here"]
    assert command("-m", "launcher.run", "-m", *words).returncode == 1
    done = manage_here(tmp_path, tmp_path, "retry", "runs/here")
    assert done.returncode == 1 and "trainer.batch_size=38 is larger than the data" in done.stderr
    assert "left as they are: 1 COMPLETED" in done.stderr
    (failed,) = [p.parent for p in tmp_path.glob("runs/here/*/status.json") if "FAILED" in p.read_text()]
    assert (failed / "attempts.jsonl").read_text().count('"start"') == 2


def test_the_local_queue_takes_todays_code(command, tmp_path):
    (tmp_path / "toytask.py").write_text(TASK)
    words = (*TOY, "hydra/launcher=submitit_local", "launch.parallel=2", "launch.name=queue", "trainer.seed=1,666")
    assert command("-m", "launcher.run", "-m", *words).returncode == 1
    (tmp_path / "toytask.py").write_text(TASK.replace("== 666", "== 667").replace('"first"', '"second"'))
    done = manage_here(tmp_path, tmp_path / "elsewhere", "retry", "../runs/queue")
    assert done.returncode == 0, done.stderr
    assert "left as they are: 1 COMPLETED" in done.stderr and "1 of 1 runs COMPLETED" in done.stdout
    said = [[line.split()[1] for line in f.read_text().splitlines()] for f in tmp_path.glob("runs/queue/*/said.0")]
    assert sorted(said) == [["first"], ["first", "second"]]
    assert len(list(tmp_path.glob("runs/queue/code/*"))) == 2


def test_runs_that_were_to_go_on_in_other_ways_are_launched_apart():
    from types import SimpleNamespace

    from launcher.manage.again import _groups

    def run(**launch):
        member = SimpleNamespace(values={"site": {}, "launch": launch}, launcher="submitit_slurm", queue={})
        return SimpleNamespace(old=SimpleNamespace(slurm_conf=None, sweep="s"), member=member)

    runs = [run(), run(**{"continue": "chain"}), run(**{"continue": "chain", "chain": 2}), run(**{"continue": "chain"})]
    assert [len(group) for group in _groups(runs)] == [1, 2, 1]
