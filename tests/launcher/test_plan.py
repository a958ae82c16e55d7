"""From composed values to a frozen plan."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from launcher.environment import environment, uncommitted
from launcher.plan import make_plan, read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.plan import Plan
from tests.conftest import REPOSITORY, SMALL, compose_values

# Ids of the first release. A change here means that finished runs of users are not recognised any more.
GOLDEN = {
    (): "3fe51d8bff01",
    ("model=seemore",): "85cbe8e59952",
    ("model=small", "tokenizer=byte", "schedule=constant"): "54d0497ca292",
    ("experiment=demo",): "fad2c471a899",
}


def plan_of(values, tmp_path):
    return make_plan(values, default_name="sweep", cwd=tmp_path)


@pytest.mark.parametrize("overrides", GOLDEN)
def test_golden_ids(overrides, tmp_path):
    values = compose_values("precision=fp32", *overrides)
    assert plan_of(values, tmp_path).run_id == GOLDEN[overrides]


def test_a_plan_goes_to_json_and_back(values, tmp_path):
    plan = plan_of(values(*SMALL), tmp_path)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.config() == Plan.from_json(json.loads(json.dumps(plan.to_json()))).config()


@pytest.mark.parametrize(
    "execution",
    ["data.workers=2", "trainer.log_every=7", "trainer.val_every=5", "checkpoint.every_steps=3", "tracker=none",
     "hardware.micro_batch=2", "trainer.compile=true", "launch.name=other", "trainer.log_samples=true",
     "throughput.peak_tflops=312", "throughput.peak_tflops=null"],
)  # fmt: skip
def test_execution_does_not_change_the_id(values, tmp_path, execution):
    assert plan_of(values(execution), tmp_path).run_id == plan_of(values(), tmp_path).run_id


@pytest.mark.parametrize(
    "science",
    ["optim.lr=3e-4", "trainer.seed=1", "trainer.batch_size=8", "model.dropout=0.2", "tokenizer=byte",
     "schedule.warmup_steps=5", "data.seed=2", "data.on_error=skip", "trainer.deterministic=true", "precision=fp32"],
)  # fmt: skip
def test_science_changes_the_id(values, tmp_path, science):
    other = values("precision=bf16", science)
    assert plan_of(other, tmp_path).run_id != plan_of(values("precision=bf16"), tmp_path).run_id


def test_an_integer_means_the_same_as_the_float(values, tmp_path):
    assert plan_of(values("optim.lr=1"), tmp_path).run_id == plan_of(values("optim.lr=1.0"), tmp_path).run_id


def test_the_id_follows_the_content_of_the_data_not_its_path(values, tmp_path, data_csv):
    copy = tmp_path / "elsewhere.csv"
    copy.write_bytes(data_csv.read_bytes())
    ids = [
        plan_of(values("data=csv", f"data.path={p}", "trainer.batch_size=4"), tmp_path).run_id for p in (data_csv, copy)
    ]
    copy.write_bytes(data_csv.read_bytes() + b"x,y\n")
    changed = plan_of(values("data=csv", f"data.path={copy}", "trainer.batch_size=4"), tmp_path).run_id
    assert ids[0] == ids[1] != changed


def test_paths_become_absolute_and_auto_is_settled(values, tmp_path, data_csv):
    whole = values("data=csv", "data.path=data.csv", "trainer.batch_size=4", "launch.root=here", "precision=auto")
    plan = plan_of(whole, tmp_path)
    assert plan.execution["task"]["data"]["path"] == str(data_csv)
    assert plan.root == str(tmp_path / "here")
    assert plan.science["precision"]["kind"] in ("bf16", "fp32")
    assert plan.hardware["device"] in ("cpu", "cuda")
    assert re.fullmatch("[0-9a-f]{64}", plan.science["data"]["digest"])


def test_a_pinned_digest_is_insisted_on(values, tmp_path, data_csv):
    whole = values("data=csv", "data.path=data.csv", "trainer.batch_size=4", "data.digest=" + "0" * 64)
    with pytest.raises(UserError, match=r"data\.digest=0{64}"):
        plan_of(whole, tmp_path)


def test_reading_the_sections_looks_at_no_file(values):
    assert read_sections(values("data=csv", "data.path=nowhere.csv")).config.data.path == "nowhere.csv"


def test_a_config_tree_of_ones_own_may_know_nothing_of_a_section_that_came_later(values, tmp_path):
    whole = values(*SMALL)
    del whole["throughput"]
    plan, ours = plan_of(whole, tmp_path), plan_of(values(*SMALL), tmp_path)
    assert plan.settings() == ours.settings() and plan.run_id == ours.run_id


@pytest.mark.parametrize("said", ["mesure", "0", "-1", "true", "[1]", "inf"])
def test_a_peak_that_is_none_is_refused_in_one_line(values, said):
    with pytest.raises(UserError, match=r"^throughput\.peak_tflops=.*: should be a positive number of TFLOP/s, "):
        read_sections(values(f"throughput.peak_tflops={said}"))


def test_a_task_that_cannot_be_imported_is_named(values):
    with pytest.raises(UserError, match="there is no module nowhere"):
        read_sections(values("task.schema=nowhere.mod:Config"))


def test_the_environment_names_python_packages_and_the_commit():
    found = environment(REPOSITORY)
    assert found["packages"]["torch"] and re.fullmatch("[0-9a-f]{40}", found["git_sha"])


def test_the_commit_is_that_of_the_folder_where_the_command_was_typed(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=u", "-c", "user.email=e"]
    (tmp_path / "a.py").write_text("A = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "a.py").write_text("A = 2\n")
    sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    found = environment(tmp_path)
    assert found["git_sha"] == sha and re.fullmatch("[0-9a-f]{12}", found["diff_id"])
    assert b"+A = 2" in uncommitted(tmp_path)


def test_outside_of_git_the_commit_is_that_of_this_package(tmp_path):
    assert environment(tmp_path)["git_sha"] == environment(REPOSITORY)["git_sha"]
