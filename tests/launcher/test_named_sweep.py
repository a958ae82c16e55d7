"""Named sweeps, as files are read and as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.named_sweep import NamedSweep, as_typed, read_sweep, words_for_hydra
from launcher.points import Axis
from launcher.runtime.errors import UserError
from launcher.runtime.rundir import RunDir
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.goal import Goal, require_same_sweep
from launcher.sweep_files import find_sweep, named_sweeps, sweep_folders
from tests.conftest import SMALL, type_here
from tests.integration.user import TASK
from tests.launcher.fake_slurm import FakeSlurm

TOY = ("task.target=toytask:train", "task.schema=toytask:Config", "tracker=none", "trainer.max_steps=1")
GRID = "vary: {grid: {optim.lr: [0.25, 0.5], trainer.seed: {range: [0, 2]}}}\n"


def typed(**words: str | list[str]) -> list[Axis]:
    """Axes as the sweeper makes them of what was typed."""
    texts = {key.replace("__", "."): [said] if isinstance(said, str) else said for key, said in words.items()}
    return [Axis(key, tuple({key: f"{key}={text}"} for text in said)) for key, said in texts.items()]


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[[str], NamedSweep]:
    """``sweep("vary: …")``: the sweep ``mine`` that a file with this text is."""

    def read(text: str) -> NamedSweep:
        (tmp_path / "mine.yaml").write_text(text)
        return read_sweep(tmp_path / "mine.yaml")

    return read


class TestMembers:
    def test_all_axes_multiply(self, sweep):
        found = sweep("""
            experiment: demo
            fixed: {trainer.max_steps: 300, site: null, optim.betas: [0.9, 0.99]}
            vary:
              grid: {optim.lr: {log: [1e-4, 1e-2], count: 3}}
              paired: [{model.n_embd: [32, 64], model.n_head: [2, 4]}]
              points: [{model: tiny}, {model: small, hardware.nodes: 2}]
            """)
        members = found.members([], [], [])
        assert len(members) == 3 * 2 * 2
        assert members[0] == [
            "experiment=demo", "trainer.max_steps=300", "site=null", "optim.betas=[0.9,0.99]", "optim.lr=0.0001",
            "model.n_embd=32", "model.n_head=2", "model=tiny", "launch.name=mine",
        ]  # fmt: skip
        assert members[-1][4:-1] == ["optim.lr=0.01", "model.n_embd=64", "model.n_head=4", "model=small",
                                     "hardware.nodes=2"]  # fmt: skip

    def test_what_is_typed_replaces_what_the_file_says(self, sweep):
        found = sweep("fixed: {trainer.max_steps: 300}\n" + GRID)
        members = found.members(typed(optim__lr=["1", "2", "3"], trainer__max_steps="5", launch__name="x"), [], [])
        assert len(members) == 2 * 3
        assert members[0] == ["trainer.seed=0", "optim.lr=1", "trainer.max_steps=5", "launch.name=x"]

    def test_a_new_key_is_one_more_axis(self, sweep):
        assert len(sweep(GRID).members(typed(model=["tiny", "small", "seemore"]), [], [])) == 2 * 2 * 3

    def test_a_typed_key_drops_out_of_blocks_and_points_and_equal_ones_are_one(self, sweep):
        found = sweep("""vary:
          paired: [{model.n_embd: [32, 64, 96], model.n_head: [2, 4, 4]}]
          points: [{model: tiny}, {model: small}]""")
        words = found.members(typed(model__n_embd="48", model="tiny"), [], [])
        assert [member[0] for member in words] == ["model.n_head=2", "model.n_head=4"]

    def test_keys_of_hydras_own_that_were_typed_win_too(self, sweep):
        found = sweep("fixed: {hydra/launcher: submitit_local, hydra.launcher.mem_gb: 2}\n" + GRID)
        assert found.members([], [], [])[0][0] == "hydra/launcher=submitit_local"
        assert found.members([], [], ["hydra/launcher"])[0][0] == "hydra.launcher.mem_gb=2"

    def test_an_experiments_params_are_weaker_than_the_file(self, sweep):
        weaker = typed(optim__lr=["7", "8"], trainer__batch_size=["4", "8"])
        members = sweep(GRID).members([], weaker, [])
        assert len(members) == 2 * 2 * 2 and not any("optim.lr=7" in member for member in members)

    def test_what_a_study_reads_is_kept_as_it_stands(self, sweep):
        found = sweep("metric: val/loss\ndirection: maximize\nsearch: {optim.lr: {log: [1e-5, 1]}}\nstudy: {n: 3}")
        assert (found.file.metric, found.file.direction) == ("val/loss", "maximize")
        assert found.file.search == {"optim.lr": {"log": [1e-5, 1]}} and found.file.study == {"n": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vari: {}", "unknown key 'vari'; did you mean 'vary'"),
        ("vary: {gird: {}}", "unknown key 'vary.gird'; did you mean 'grid'"),
        ("direction: up\n" + GRID, "direction='up': should be 'minimize' or 'maximize'"),
        ("metric: 3\n" + GRID, "metric=3: should be a valid string"),
        ("fixed: [1]\n" + GRID, "fixed=[1]: should be a"),
        ("vary: [1]", "vary=[1]: should be"),
        ("vary: {paired: {a: [1]}}", "vary.paired="),
        ("vary: {}", "vary: is empty (allowed here: grid, paired, points)"),
        ("vary: {grid: {}}", "vary.grid: is empty"),
        ("vary: {paired: []}", "vary.paired: is empty"),
        ("vary: {points: []}", "vary.points: is empty"),
        ("vary: {paired: [{}]}", "vary.paired[0]: is empty"),
        ("vary: {grid: {optim.lr: []}}", "vary.grid.optim.lr=[]: has no value"),
        ("vary: {grid: {optim.lr: 3}}", "vary.grid.optim.lr=3: should be a list"),
        ("vary: {grid: {optim.lr: {log: [0, 1], count: 2}}}", "vary.grid.optim.lr.log=[0, 1]: both should be above 0"),
        ("vary: {grid: {x: {log: [1, 2], count: 0}}}", "vary.grid.x.count=0: should be greater than or equal to 1"),
        ("vary: {grid: {x: {range: [3, 3]}}}", "vary.grid.x.range=[3, 3]: has no value"),
        (
            "vary: {paired: [{a: [1, 2], b: [1, 2, 3]}]}",
            "vary.paired[0]: a has 2 values, b has 3 values; should be as many of each",
        ),
        ("vary: {grid: {a: [1]}, points: [{a: 2}]}", "a: stands in vary.grid and in vary.points; name it once"),
        ("fixed: {a: 1}\nvary: {grid: {a: [1]}}", "a: stands in fixed and in vary.grid; name it once"),
        ("search: {a: [1]}", "has no 'vary'; it is for python -m sweeps study"),
        ("fixed: {a: 1}", "has no 'vary'; say what to vary"),
        ("", "has no 'vary'; say what to vary"),
        ("[1, 2]", "should be a mapping of keys and values"),
        ("12", "should be a mapping of keys and values"),
        ("a: [1", "cannot be read as YAML"),
        ("a: 1\na: 2", "cannot be read as YAML"),
        ("a: !!python/object:os.system {}", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "mine.yaml: "),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_that_names_the_file(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_sweep(file).members([], [], [])
    assert str(caught.value).startswith(str(file)) and words in str(caught.value) and "\n" not in str(caught.value)


class TestFinding:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        (tmp_path / "config" / "seemore" / "sweeps").mkdir(parents=True)
        (tmp_path / "sweeps").mkdir()
        return sweep_folders(tmp_path, {"XDG_CONFIG_HOME": str(tmp_path / "config")})

    def test_the_nearest_wins(self, tmp_path, folders):
        (shipped,) = {path.parent for path in named_sweeps(folders).values()}
        assert (shipped / "lr_batch.yaml").exists() and find_sweep("lr_batch", folders, tmp_path).parent == shipped
        for folder in reversed(folders[:2]):
            (folder / "lr_batch.yaml").write_text(GRID)
            assert find_sweep("lr_batch", folders, tmp_path).parent == folder

    def test_a_path_is_one(self, tmp_path, folders):
        (tmp_path / "x.yaml").write_text(GRID)
        assert find_sweep("x.yaml", folders, tmp_path) == tmp_path / "x.yaml"
        with pytest.raises(UserError, match=r"sweep=no/x\.yaml: there is no such file"):
            find_sweep("no/x.yaml", folders, tmp_path)

    def test_an_unknown_one_is_told_with_those_there_are(self, tmp_path, folders):
        (folders[0] / "mine.yaml").write_text(GRID)
        with pytest.raises(UserError, match=r"sweep=lr_bach: .*did you mean 'lr_batch'.*lr_batch, mine"):
            find_sweep("lr_bach", folders, tmp_path)

    def test_the_word_becomes_hydras_and_back(self, tmp_path, folders):
        file = tmp_path / "it's mine.yaml"
        file.write_text("experiment: demo\n" + GRID)
        words = words_for_hydra(["-m", f"sweep={file.name}", "optim.lr=1"], folders, tmp_path)
        assert words[:2] == ["-m", "optim.lr=1"] and words[3] == "experiment=demo"
        assert as_typed(words) == ["-m", "optim.lr=1", f"sweep={file}", "experiment=demo"]
        words = words_for_hydra(["-m", f"sweep={file.name}", "experiment=null"], folders, tmp_path)
        assert [word for word in words if word.startswith("experiment")] == ["experiment=null"]
        assert words_for_hydra(["sweep=null", "a=1"], folders, tmp_path) == ["a=1"]
        with pytest.raises(UserError, match=r"sweep=lr_batch: is many runs; add -m"):
            words_for_hydra(["sweep=lr_batch"], folders, tmp_path)


@pytest.mark.parametrize("name", ["lr_batch", "width"])
def test_what_is_shipped_opens_with_its_command_and_has_members(tmp_path, name):
    path = find_sweep(name, sweep_folders(tmp_path, {}), tmp_path)
    assert path.read_text().startswith(f"# python -m launcher.run -m sweep={name}\n# Expect ")
    assert read_sweep(path).members([], [], [])


class TestGoal:
    @pytest.fixture
    def done(self, tmp_path: Path) -> RunDir:
        rundir = RunDir(tmp_path)
        rundir.summary.write_text('{"best_val_loss": null, "train_loss": 3, "accuracy": 0.5, "none": null, "t": "x"}')
        rundir.metrics.write_text("step,split,name,value\n1,val,loss,5\n2,val,loss,4\n")
        return rundir

    @pytest.mark.parametrize(("metric", "value"), [("best_val_loss", 3.0), ("accuracy", 0.5), ("val/loss", 4.0)])
    def test_a_metric_is_a_number_of_the_summary_or_the_end_of_a_curve(self, done, metric, value):
        assert Goal(metric, "minimize", "x").value(done) == value
        assert str(Goal("none", "minimize", "x").value(done)) == "nan"

    def test_one_that_is_not_there_is_told_with_the_nearest(self, done):
        with pytest.raises(UserError, match=r"metric=acuracy: .*did you mean 'accuracy'.*val/loss"):
            Goal("acuracy", "minimize", "x").value(done)
        with pytest.raises(UserError, match=r"metric=t: is 'x'"):
            Goal("t", "minimize", "x").value(done)

    @pytest.mark.parametrize(
        ("metric", "doubt"),
        [
            ("bset_val_loss", "did you mean 'best_val_loss'?"), ("best_val_loss", ""), ("val/loss", ""), ("f1", ""),
        ],
    )  # fmt: skip
    def test_a_metric_that_looks_misspelt_is_doubted_before_hours_of_training(self, metric, doubt):
        said = Goal(metric, "minimize", "mine").doubt()
        assert doubt in said and bool(said) == bool(doubt)

    def test_a_folder_belongs_to_one_sweep_and_one_task(self, tmp_path):
        folder = SweepDir(tmp_path / "runs")
        require_same_sweep(folder, Goal("m", "minimize", "one"), ["a:b"])
        folder.path.mkdir()
        folder.add_request(members=1)  # an older version's, or by hand
        require_same_sweep(folder, Goal("m", "minimize", "one"), ["a:b"])
        folder.add_request(sweep="one", target="a:b")
        folder.add_request(members=1)
        require_same_sweep(folder, None, ["a:b"])
        require_same_sweep(folder, Goal("other", "maximize", "one"), ["a:b", "c:d"])
        with pytest.raises(
            UserError, match=r"holds runs of sweep=one, this is sweep=two; choose another launch\.name=…"
        ):
            require_same_sweep(folder, Goal("m", "minimize", "two"), ["a:b"])
        with pytest.raises(UserError, match=r"holds runs of task\.target=a:b, this is task\.target=c:d"):
            require_same_sweep(folder, None, ["c:d"])


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A user's folder with a task and a sweep of their own."""
    folder = tmp_path / "mine"
    (folder / "sweeps").mkdir(parents=True)
    (folder / "toytask.py").write_text(TASK)
    (folder / ".gitignore").write_text("runs/\n__pycache__/\n")
    subprocess.run(["git", "-C", str(folder), "init", "-q"], check=True)
    return folder


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm")


Typist = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(repo: Path, slurm: FakeSlurm, tmp_path: Path) -> Typist:
    """``run("sweep=toy", …, file="vary: …")``: typed with ``-m`` and the toy task; the file is ``sweeps/toy.yaml``."""
    env = slurm.env | {"XDG_CONFIG_HOME": str(tmp_path / "config"), "OMP_NUM_THREADS": "1"}

    def typed(*words: str, file: str = GRID) -> subprocess.CompletedProcess[str]:
        (repo / "sweeps" / "toy.yaml").write_text(file)
        return type_here(repo, env, "-m", *TOY, *words)

    return typed


ON_SLURM = "hydra/launcher=submitit_slurm"


def requests(repo: Path, name: str = "toy") -> list[dict]:
    return json.loads((repo / "runs" / name / "sweep.json").read_text())["requests"]


class TestOnSlurm:
    def test_members_go_to_the_folder_of_its_name_and_the_goal_is_recorded(self, run, repo, slurm):
        done = run("sweep=toy", ON_SLURM, file="metric: step\ndirection: maximize\n" + GRID)
        assert done.returncode == 0 and done.stdout.count("SUBMITTED") == 4, done.stderr
        (request,) = requests(repo)
        assert request["members"] == 4 and request["target"] == "toytask:train"
        assert (request["sweep"], request["metric"], request["direction"]) == ("toy", "step", "maximize")
        assert f"sweep={repo}/sweeps/toy.yaml" in request["command"]
        assert "named" not in (repo / "runs" / "toy" / "members.jsonl").read_text()
        more = run("sweep=toy", ON_SLURM, "optim.lr=0.25,0.5,1")
        assert more.returncode == 0 and more.stdout.count("SUBMITTED") == 6, more.stderr
        assert slurm.submitted == [4, 2], "what is typed on top extends the sweep"

    def test_members_of_each_shape_are_an_array(self, run, slurm):
        points = "[{optim.lr: 1}, {optim.lr: 2, hardware.nodes: 2}, {optim.lr: 3, hydra.launcher.mem_gb: 5}]"
        done = run("sweep=toy", ON_SLURM, file=f"vary: {{grid: {{trainer.seed: [0, 1]}}, points: {points}}}")
        assert done.returncode == 0, done.stderr
        texts = [Path(job["script"]).read_text() for job in slurm.state["jobs"].values()]
        assert slurm.submitted == [2, 2, 2]
        assert ["--nodes=2" in text for text in texts] == [False, True, False]
        assert ["--mem=5GB" in text for text in texts] == [False, False, True]

    def test_waiting_gives_the_metric_that_the_file_names(self, run, slurm):
        slurm.set(at_once=True)
        done = run("sweep=toy", ON_SLURM, "launch.wait=true", file="metric: no_such\n" + GRID)
        assert done.returncode == 1 and "metric=no_such: run " in done.stderr, done.stderr
        done = run("sweep=toy", ON_SLURM, "launch.wait=true", file="metric: step\n" + GRID)
        assert done.returncode == 0, done.stderr

    def test_another_sweeps_folder_is_refused_before_anything_is_written(self, run, repo, slurm):
        assert run("sweep=toy", ON_SLURM).returncode == 0
        (repo / "sweeps" / "other.yaml").write_text(GRID)
        before = {str(p): p.stat().st_mtime_ns for p in (repo / "runs").rglob("*")}
        done = run("sweep=other", ON_SLURM, "launch.name=toy")
        assert done.returncode == 1 and "holds runs of sweep=toy, this is sweep=other" in done.stderr
        assert "choose another launch.name" in done.stderr and len(done.stderr.splitlines()) == 1
        assert {str(p): p.stat().st_mtime_ns for p in (repo / "runs").rglob("*")} == before and slurm.submitted == [4]

    def test_runs_that_are_typed_join_it(self, run, slurm):
        assert run("sweep=toy", ON_SLURM).returncode == 0
        assert run(ON_SLURM, "launch.name=toy", "optim.lr=7,8").returncode == 0
        assert run("sweep=toy", ON_SLURM, "trainer.seed=9").returncode == 0
        assert slurm.submitted == [4, 2, 2]


@pytest.mark.parametrize("launcher", ["basic", "submitit_local", "submitit_slurm"])
def test_members_that_learn_the_same_are_one_run(run, launcher):
    file = "vary: {grid: {optim.lr: [0.5, 5e-1], hardware.cpus_per_task: [1, 1]}}"
    done = run(f"hydra/launcher={launcher}", "sweep=toy", "launch.dry_run=true", file=file)
    assert done.returncode == 0, done.stderr
    assert "3 of 4 members learn the same as others: run once" in done.stderr


@pytest.mark.parametrize(
    ("words", "file", "said"),
    [
        ((), "vary: {grid: {optim.lrr: [1, 2]}}", ["unknown key 'optim.lrr'; did you mean 'optim.lr'"]),
        ((), "vary: {grid: {optim.lr: [1, fast], trainer.batch_size: [16, many]}}",
         ["optim.lr='fast'", "batch_size='many'", "(3 of 4"]),
        ((), "vary: {points: [{model: nope}, {optim.lr: x}, {optim: nope}]}",
         ["model=nope: there is no", "optim=nope: there", "optim.lr='x'"]),
        ((), "experiment: nope\n" + GRID, ["experiment=nope: there is no such option"]),
        ((), "vary: {grid: {'a b': [1]}}", ["sweeps/toy.yaml: 'a b': should be a key of the config"]),
        ((), "vary: {grid: {'~optim.lr': [1]}}", ["sweeps/toy.yaml: '~optim.lr': should be a key of the config"]),
        (("trainer.seed=range(0,0)",), GRID, ["the sweep has no member: one of optim.lr, trainer.seed has no value"]),
        (("sweep=toi",), GRID, ["sweep=toi: there is no such sweep; did you mean 'toy'", "lr_batch", "width"]),
        ((), "fixed: {launch.name: a/b}\n" + GRID, ["name='a/b' should be one folder name"]),
    ],
)  # fmt: skip
def test_nothing_is_submitted_of_what_does_not_fit(run, repo, slurm, words, file, said):
    done = run(ON_SLURM, *([] if "sweep=toi" in words else ["sweep=toy"]), *words, "task.target=vlm.train:train",
               "task.schema=vlm.config:TrainConfig", file=file)  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(text in done.stderr for text in said), done.stderr
    assert not (repo / "runs").exists() and slurm.submitted == []


def test_in_this_process_it_is_recorded_too(command, tmp_path):
    (tmp_path / "few.yaml").write_text("metric: val_loss\nvary: {grid: {optim.lr: [1e-3, 2e-3, 1.0e-3]}}")
    done = command("-m", "launcher.run", "-m", "sweep=few.yaml", *SMALL, "trainer.max_steps=2")
    assert done.returncode == 0 and done.stdout.count("COMPLETED: ") == 2, done.stderr
    assert "1 of 3 members learn the same as others" in done.stderr
    (request,) = requests(tmp_path, "few")
    assert (request["sweep"], request["metric"], request["members"]) == ("few", "val_loss", 2)
    runs = {path.parent.name for path in (tmp_path / "runs" / "few").glob("*/summary.json")}
    lines = (tmp_path / "runs" / "few" / "members.jsonl").read_text().splitlines()
    assert {json.loads(line)["run_id"] for line in lines} == runs
    (tmp_path / "other.yaml").write_text("vary: {grid: {optim.lr: [1, 2]}}")
    other = command("-m", "launcher.run", "-m", "sweep=other.yaml", *SMALL, "launch.name=few")
    assert other.returncode == 1 and "holds runs of sweep=few, this is sweep=other" in other.stderr
    assert requests(tmp_path, "few") == [request]


EXPERIMENT = """\
# @package _global_
hydra:
  sweeper:
    params:
      optim.lr: 0.25,0.5
      trainer.seed: range(0,2)
      trainer.batch_size: [4, 8]
      optim.weight_decay: choice(0.1)
      trainer.val_every: null
"""


class TestAnExperimentsParams:
    @pytest.fixture(autouse=True)
    def experiment(self, tmp_path: Path) -> None:
        folder = tmp_path / "config" / "seemore" / "experiment"
        folder.mkdir(parents=True)
        (folder / "swept.yaml").write_text(EXPERIMENT)

    def test_they_are_swept(self, run, slurm):
        done = run(ON_SLURM, "experiment=swept")
        assert done.returncode == 0 and slurm.submitted == [8], done.stderr
        assert "optim.lr=0.25 trainer.seed=0 trainer.batch_size=4" in done.stdout

    def test_what_is_typed_wins(self, run, slurm):
        done = run(ON_SLURM, "experiment=swept", "trainer.batch_size=16", "trainer.seed=5,6,7")
        assert done.returncode == 0 and slurm.submitted == [6], done.stderr

    def test_a_named_sweep_of_the_experiment_has_them_where_it_says_nothing(self, run, slurm):
        done = run(ON_SLURM, "sweep=toy", file="experiment: swept\n" + GRID.replace("0.5]", "0.5, 0.75]"))
        assert done.returncode == 0 and slurm.submitted == [3 * 2 * 2], done.stderr


def test_help_names_the_sweeps(repo):
    (repo / "sweeps" / "toy.yaml").write_text(GRID)
    said = type_here(repo, dict(os.environ), "--help").stdout
    assert "sweep=NAME" in said and "lr_batch, seemore_search, toy, width" in said
