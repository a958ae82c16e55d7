"""``python -m launcher clean``: what goes, and everything that must not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.__main__ import main
from launcher.manage.removable import of_run
from launcher.runtime.checkpoint.manifest import require_whole
from launcher.runtime.errors import UserError
from launcher.runtime.files import write_json
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import write_plans
from tests.launcher.made_sweep import MadeSweep
from tests.launcher.recorded_slurm import AWAY
from tests.launcher.runtime.saving import begin, flip, make_saver, save, truncate

STEPS = (1, 2, 3)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Checkpoints of a run: three full states, best and final weights."""
    folder = tmp_path_factory.mktemp("template") / "run"
    saver = make_saver(folder, keep_last=3)
    for step in STEPS:
        save(saver, step)
    save(saver, 2, kind="best", metric=1.0)
    save(saver, 3, kind="final")
    return RunDir(folder).checkpoints


@pytest.fixture
def slurm(recorded_slurm):
    return recorded_slurm


@pytest.fixture
def sweep(tmp_path, template, slurm):
    """A sweep of this machine with a COMPLETED run ``aaa`` and a FAILED one ``bbb``."""
    made = MadeSweep(tmp_path / "runs" / "demo")
    for run, state in (("aaa", "COMPLETED"), ("bbb", "FAILED")):
        shutil.copytree(template, made.run(run).checkpoints, symlinks=True)
        made.status(run, state)
    return made


def left(sweep: MadeSweep, run: str) -> list[str]:
    """Kinds and steps of the checkpoints that are there."""
    rundir = sweep.dir.run(run)
    found = [path.name for kind in ("best", "final", "step") for path in rundir.list_checkpoints(kind)]
    return [f"{name.partition('-')[0]}{int(name[-18:-6])}" for name in found]


ALL = ["best2", "final3", "step3", "step2", "step1"]


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*") if path.name != ".lock")


def test_without_yes_it_says_what_would_go_and_changes_nothing(sweep, capsys):
    before = tree(sweep.dir.path)
    assert main(["clean", "runs/demo", "--keep-best"]) == 0
    assert tree(sweep.dir.path) == before
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("would remove ") and "runs/demo/aaa: 3 state (step-000000000003.a0001, " in first
    assert "runs/demo/bbb: 2 state (step-000000000002.a0001, step-000000000001.a0001)" in second
    assert err.startswith("would remove ") and err.endswith("; nothing was changed, --yes removes it\n")


def test_keep_best_leaves_the_weights_of_what_is_done_and_what_others_go_on_from(sweep, capsys):
    assert main(["clean", "runs", "--keep-best", "--yes"]) == 0
    assert left(sweep, "aaa") == ["best2", "final3"] and left(sweep, "bbb") == ["best2", "final3", "step3"]
    assert not sweep.dir.run("aaa").latest.exists() and sweep.dir.run("bbb").latest.exists()
    assert capsys.readouterr().err.startswith("removed ")
    assert main(["clean", "runs", "--keep-best", "--yes"]) == 0
    assert capsys.readouterr().err == "nothing to remove\n"


def test_keep_last_leaves_the_newest_state_too(sweep):
    assert main(["clean", "runs/demo", "--keep-last", "--yes"]) == 0
    assert left(sweep, "aaa") == left(sweep, "bbb") == ["best2", "final3", "step3"]


def test_without_a_word_about_checkpoints_all_of_them_stay(sweep):
    assert main(["clean", "runs/demo", "--yes"]) == 0
    assert left(sweep, "aaa") == ALL


def test_a_run_alone(sweep):
    assert main(["clean", "aaa", "--keep-best", "--yes"]) == 0
    assert left(sweep, "aaa") == ["best2", "final3"] and left(sweep, "bbb") == ALL


def test_without_weights_of_their_own_the_newest_state_has_the_only_ones(sweep):
    for kind in ("best", "final"):
        shutil.rmtree(*sweep.dir.run("aaa").list_checkpoints(kind))
    assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 0
    assert left(sweep, "aaa") == ["step3"]


@pytest.mark.parametrize("harm", [flip, truncate])
def test_what_stays_is_read_first_and_where_it_is_damaged_something_else_stays(sweep, harm):
    rundir = sweep.dir.run("aaa")
    for kind in ("best", "final"):
        harm(rundir.list_checkpoints(kind)[0] / "model.safetensors")
    harm(rundir.list_checkpoints("step")[0] / "model.safetensors")
    assert main(["clean", "aaa", "--keep-best", "--yes"]) == 0
    assert left(sweep, "aaa") == ["best2", "final3", "step2"]


def test_where_nothing_is_whole_all_stays_and_is_said_in_one_line(sweep, capsys):
    for checkpoint in sweep.dir.run("aaa").checkpoints.glob("*-*"):
        flip(checkpoint / "model.safetensors")
    assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 1
    assert left(sweep, "aaa") == ALL and left(sweep, "bbb") == ["best2", "final3", "step3"], "the others are cleaned"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: run runs/demo/aaa: no checkpoint of it is whole (") and "all of them stay" in line


def test_what_an_attempt_that_was_given_up_left_is_not_what_a_run_goes_on_from(sweep):
    begin(sweep.dir.run("bbb").path, 1, None)
    begin(sweep.dir.run("bbb").path, 2, sweep.dir.run("bbb").list_checkpoints("step")[1])  # from step 2: 3 is an orphan
    assert main(["clean", "bbb", "--keep-last", "--yes"]) == 0
    assert left(sweep, "bbb") == ["best2", "final3", "step2"]


DAMAGE = st.lists(st.sampled_from(["whole", "short", "gone"]), min_size=5, max_size=5)


@given(damage=DAMAGE, keep=st.sampled_from(["all", "last", "best"]), completed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_run_never_loses_its_last_whole_checkpoint(template, tmp_path_factory, damage, keep, completed):
    rundir = RunDir(tmp_path_factory.mktemp("law"))
    shutil.copytree(template, rundir.checkpoints)
    checkpoints = sorted(rundir.checkpoints.glob("*-*"))
    for checkpoint, harm in zip(checkpoints, damage, strict=True):
        if harm == "short":
            (checkpoint / "model.safetensors").write_bytes(b"")
        elif harm == "gone":
            shutil.rmtree(checkpoint)
    whole = {path for path, harm in zip(checkpoints, damage, strict=True) if harm == "whole"}
    states = {path for path in whole if path.name.startswith("step")}
    try:
        gone = {item.path for item in of_run(rundir, keep, traces=True, completed=completed, checksums=True)}
    except UserError:
        gone = set()
    assert not whole or whole - gone, "weights to use"
    assert completed or not states or states - gone, "a state to go on from"
    assert keep != "all" or not gone
    for path in whole - gone:
        require_whole(path, checksums=True)


class TestLeftAlone:
    """What is queued, runs, or is held by somebody."""

    def test_runs_that_a_process_is_there_for(self, sweep, capsys):
        sweep.status("aaa", "RUNNING")
        assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 0
        assert left(sweep, "aaa") == ALL
        assert "left as they are: 1 RUNNING" in capsys.readouterr().err

    def test_a_run_that_is_stalled_may_live_on_another_machine(self, sweep, capsys):
        sweep.status("aaa", "RUNNING", age_s=10_000)
        assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 0
        assert left(sweep, "aaa") == ALL and "left as they are: 1 STALLED" in capsys.readouterr().err

    def test_runs_that_wait_in_slurms_queue_and_those_that_never_began(self, sweep, slurm, capsys):
        sweep.submitted("bbb")
        slurm.queue(("12", "PENDING"))
        sweep.run("ccc")
        assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 0
        assert left(sweep, "bbb") == ALL and left(sweep, "aaa") == ["best2", "final3"]
        assert "left as they are: 1 PLANNED, 1 SUBMITTED" in capsys.readouterr().err

    def test_all_of_them_where_slurm_does_not_answer(self, sweep, slurm, capsys):
        sweep.submitted("bbb")
        slurm.says("squeue", err=AWAY, code=1)
        assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 1
        assert left(sweep, "aaa") == ALL
        assert capsys.readouterr().err.rstrip().endswith("nothing was removed")

    def test_a_run_whose_lock_is_held(self, sweep, capsys):
        with FileLock(sweep.dir.run("aaa").lock_file):
            assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 1
        assert left(sweep, "aaa") == ALL and left(sweep, "bbb") == ["best2", "final3", "step3"]
        assert "another process is training it" in capsys.readouterr().err

    def test_a_sweep_that_is_being_submitted(self, sweep, capsys):
        with sweep.dir.locked():
            assert main(["clean", "runs/demo", "--keep-best", "--yes"]) == 1
        assert left(sweep, "aaa") == left(sweep, "bbb") == ALL
        assert "another command is submitting it" in capsys.readouterr().err


def test_litter_goes_and_traces_only_when_asked(sweep, capsys):
    rundir = sweep.dir.run("aaa")
    half = rundir.unfinished(rundir.checkpoint("step", 9, 1))
    half.mkdir()
    (half / "model.safetensors").write_bytes(bytes(1000))
    torn = rundir.path / ".status.json.77.tmp"
    torn.write_text("{")
    rundir.traces.mkdir()
    rundir.trace(0, 3, 1).write_bytes(bytes(500))
    assert main(["clean", "runs/demo", "--yes"]) == 0
    assert not half.exists() and not torn.exists() and rundir.list_traces()
    assert "removed" in (out := capsys.readouterr().out) and "aaa: 2 unfinished (" in out
    assert main(["clean", "runs/demo", "--traces", "--yes"]) == 0
    assert not rundir.traces.exists()


def test_a_run_that_was_moved_aside_goes_once_the_one_in_its_place_is_done(sweep):
    for run in ("aaa", "bbb"):
        (sweep.dir.replaced / f"{run}.1" / "checkpoints").mkdir(parents=True)
    assert main(["clean", "runs/demo", "--yes"]) == 0
    assert [path.name for path in sweep.dir.replaced.iterdir()] == ["bbb.1"]


def copies(sweep: MadeSweep) -> list[str]:
    return sorted(path.name for path in sweep.dir.code.iterdir())


@pytest.fixture
def code(sweep):
    """Copies of the code: of a plan, of a newest submission, of an older one, of the last command, of nobody."""
    for name in ("planned", "newest", "older", "asked", "nobody", "moved", ".half.7.tmp"):
        (sweep.dir.code / name).mkdir(parents=True)
        (sweep.dir.code / name / "task.py").write_text("x")
        (sweep.dir.code / name / "task.py").chmod(0o444)
    write_json(sweep.dir.run("aaa").plan, {"code": "planned"})
    for token, used in (("t1", "older"), ("t2", "newest")):
        sweep.submitted("bbb", token=token)
        write_plans(sweep.dir.plans(token), [{"run_id": "bbb", "code": used}])
    sweep.dir.add_request(members=1, code="nobody")
    sweep.dir.add_request(members=1, code="asked")
    (sweep.dir.replaced / "bbb.1").mkdir(parents=True)
    write_json(sweep.dir.replaced / "bbb.1" / "plan.json", {"code": "moved"})
    sweep.started("bbb")
    return sweep


def test_copies_of_the_code_that_no_run_uses_go(code, slurm):
    slurm.queue()
    assert main(["clean", "runs/demo", "--yes"]) == 0
    assert copies(code) == ["asked", "moved", "newest", "planned"]


def test_copies_of_the_code_stay_while_a_run_may_start(code, slurm):
    code.run("ccc")
    code.submitted("ccc", token="t3", job="13")
    slurm.queue(("13", "PENDING"))
    before = copies(code)
    assert main(["clean", "runs/demo", "--yes"]) == 0
    assert copies(code) == before


def test_copies_of_the_code_stay_where_one_run_alone_is_named(code):
    before = copies(code)
    assert main(["clean", "aaa", "--keep-best", "--yes"]) == 0
    assert copies(code) == before


@pytest.mark.parametrize("words", [["--yes"], []])
def test_a_plan_that_cannot_be_read_is_told_and_no_copy_of_the_code_goes(code, slurm, capsys, words):
    slurm.queue()
    before = copies(code)
    code.dir.run("aaa").plan.write_text("{")
    assert main(["clean", "runs/demo", *words]) == 1
    assert copies(code) == before and "plan.json: cannot be read" in capsys.readouterr().err


def test_json_is_a_record_for_each_thing(sweep, capsys):
    assert main(["clean", "aaa", "--keep-last", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(Path(one["path"]).name, one["kind"], one["removed"]) for one in found] == [
        ("step-000000000002.a0001", "state", False), ("step-000000000001.a0001", "state", False),
    ]  # fmt: skip
    assert all(one["bytes"] > 100 and one["files"] == 4 for one in found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/nope"], "runs/nope: there is no such folder"),
        (["empty"], "empty: holds no run; name a sweep's folder"),
        (["file"], "file: there is no such folder"),
        (["zzz"], "zzz: no run or job below"),
    ],
)
def test_what_is_no_run_and_no_sweep_is_said_in_one_line(sweep, tmp_path, capsys, words, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(["clean", *words, "--yes"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize("words", [[], ["runs", "--keep-best", "--keep-last"]])
def test_words_that_do_not_go_together(words):
    with pytest.raises(SystemExit) as caught:
        main(["clean", *words])
    assert caught.value.code == 2
