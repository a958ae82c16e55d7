"""The batch script: every key under its meaning, nothing of the user's taken for more than text."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.submission.batch import Batch, script_text
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.jobs import job, no_code


def text_of(
    root: Path, queue: dict[str, Any] | None = None, count: int = 1, cwd: Path | None = None, **asked: Any
) -> str:
    sweep = SweepDir(root / "sweep")
    resources = job(root, 0, queue, **asked).resources
    return script_text(Batch.of(sweep, "TOKEN", resources, count, sweep.job_logs), no_code(sweep.path, cwd or root))


def options(text: str) -> dict[str, str]:
    """Options of ``#SBATCH`` lines, quotes and backslashes taken off as sbatch does."""
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert all(line.count("\\") == 2 * line.count("\\\\") for line in lines), "one by itself escapes a quote"
    words = [shlex.split(line)[0].replace("\\\\", "\\") for line in lines]
    pairs = [word.removeprefix("--").partition("=") for word in words]
    assert len({name for name, _, _ in pairs}) == len(pairs), "an option is given twice"
    return {name: value for name, _, value in pairs}


def srun(text: str) -> list[str]:
    lines = text.splitlines()
    (line,) = [line for line in lines if line.startswith("srun ")]
    assert lines[lines.index(line) + 1] == "code=$?" and lines[-1] == 'exit "$code"', "its exit code is the job's"
    return shlex.split(line)


# Key of hydra-submitit-launcher, a value, and what must stand in the script.
KEYS: dict[str, tuple[Any, dict[str, str]]] = {
    "nodes": (3, {"nodes": "3"}),
    "tasks_per_node": (4, {"ntasks-per-node": "4"}),
    "gpus_per_node": (2, {"gpus-per-node": "2"}),
    "cpus_per_task": (5, {"cpus-per-task": "5"}),
    "mem_gb": (7, {"mem": "7GB"}),
    "timeout_min": (11, {"time": "11"}),
    "name": ("my job", {"job-name": "my job"}),
    "partition": ("low", {"partition": "low"}),
    "qos": ("q", {"qos": "q"}),
    "comment": ("it's \"x\" $HOME", {"comment": "it's \"x\" $HOME"}),
    "constraint": ("a&b", {"constraint": "a&b"}),
    "exclude": ("n[1-3]", {"exclude": "n[1-3]"}),
    "gres": ("gpu:1", {"gres": "gpu:1"}),
    "cpus_per_gpu": (3, {"cpus-per-gpu": "3"}),
    "gpus_per_task": (1, {"gpus-per-task": "1"}),
    "mem_per_gpu": ("8G", {"mem-per-gpu": "8G"}),
    "mem_per_cpu": ("2G", {"mem-per-cpu": "2G"}),
    "account": ("acc", {"account": "acc"}),
    "signal_delay_s": (77, {"signal": "USR2@77"}),
    "additional_parameters": ({"mail-user": "a@b", "mail_type": "END", "hold": True},
                              {"mail-user": "a@b", "mail-type": "END", "hold": ""}),
    "array_parallelism": (2, {"array": "0-4%2"}),
    "max_num_timeout": (3, {}),
    "submitit_folder": ("elsewhere/%j", {}),  # see test_dispatch
    "setup": (["module load x"], {}),
    "stderr_to_stdout": (True, {}),
    "_target_": ("x", {}),
}  # fmt: skip


def test_every_documented_key_is_tested():
    assert set(KEYS) == {field.name for field in dataclasses.fields(SlurmQueueConf)}


@pytest.mark.parametrize("key", KEYS)
def test_a_documented_key_reaches_the_script(tmp_path, key):
    value, expected = KEYS[key]
    queue = {key: value} | ({"gpus_per_task": 1} if key == "cpus_per_gpu" else {})
    text = text_of(tmp_path, queue, count=5)
    assert expected.items() <= options(text).items()
    if key == "setup":
        assert "\nmodule load x\n" in text.partition("srun ")[0]
    if key == "stderr_to_stdout":
        assert "error" not in options(text) and "--error" not in srun(text)
    if key == "cpus_per_task":
        assert "--cpus-per-task=5" in srun(text)


def test_what_every_script_has(tmp_path):
    text = text_of(tmp_path)
    found = options(text)
    assert found["open-mode"] == "append" and "requeue" in found and "array" not in found
    assert found["time"] == "60" and found["job-name"] == "sweep" and found["chdir"] == str(tmp_path)
    words = srun(text)
    assert {"--kill-on-bad-exit=1", "--open-mode=append", "--unbuffered"} <= set(words)
    plans = str(tmp_path / "sweep/submissions/TOKEN.jsonl")
    assert words[-6:] == ["-uP", "-m", "launcher.runtime.worker", plans, "--submission", "TOKEN"]


def test_a_job_that_must_not_be_requeued_is_not(tmp_path):
    found = options(text_of(tmp_path, {"additional_parameters": {"no-requeue": True}}))
    assert "no-requeue" in found and "requeue" not in found


def test_an_option_that_is_a_key_too_is_written_once(tmp_path):
    found = options(text_of(tmp_path, {"mem_gb": 3, "additional_parameters": {"mem": "5G", "gpus-per-node": 1}}))
    assert found["mem"] == "5G" and found["gpus-per-node"] == "1"


def test_options_that_are_off_are_not_written(tmp_path):
    found = options(text_of(tmp_path, {"additional_parameters": {"hold": False, "reservation": None, "nice": 0}}))
    assert "hold" not in found and "reservation" not in found and found["nice"] == "0"


def test_setup_lines_of_the_site_come_first(tmp_path):
    text = text_of(
        tmp_path, {"setup": ["echo queue"]}, site={"setup": ["echo site"], "python": "apptainer exec x python"}
    )
    assert text.index("echo site") < text.index("echo queue") < text.index("export PYTHONPATH") < text.index("srun ")
    assert " apptainer exec x python -uP -m launcher.runtime.worker " in text


NASTY = "a 'b' \"c\" $(touch canary) `touch canary` ; touch canary & | > canary \\ # %j %% * ~ !x"
STRINGS = [
    key for key, (value, _) in KEYS.items() if isinstance(value, str) and key not in ("submitit_folder", "_target_")
]


def run_script(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Execute it as Slurm would, srun being one that does as srun does."""
    slurm = FakeSlurm(folder / "fake")
    script = folder / "script.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    return subprocess.run(["bash", str(script)], cwd=folder, env=slurm.env, capture_output=True, text=True, check=False)


def test_no_text_of_the_users_is_executed(tmp_path):
    """Every key that takes text, folders too, with all that a shell might act upon."""
    root = tmp_path / NASTY.replace("\\", "")[:120]
    (root / "sweep" / "submissions").mkdir(parents=True)
    queue = dict.fromkeys(STRINGS, NASTY) | {"additional_parameters": {"mail-user": NASTY, "reservation": NASTY}}
    text = text_of(root, queue, count=2, site={"python": "printf '%s\\n'"})
    found = options(text)
    assert all(found[key.replace("_", "-").replace("name", "job-name")] == NASTY for key in STRINGS)
    assert found["mail-user"] == NASTY and found["chdir"] == str(root)
    done = run_script(text, tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == srun(text)[srun(text).index("printf") + 2 :]
    assert not list(tmp_path.rglob("canary"))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(text=st.text(min_size=1, max_size=30), key=st.sampled_from([*STRINGS, "mail-user", "option"]))
def test_any_text_is_refused_or_stays_in_its_line(tmp_path, text, key):
    if key == "option":
        queue: dict[str, Any] = {"additional_parameters": {text: "x"}}
    else:
        queue = {key: text} if key in STRINGS else {"additional_parameters": {key: text}}
    plain = text_of(tmp_path, {k: "x" for k in queue if k in STRINGS})
    try:
        script = text_of(tmp_path, queue)
    except UserError:
        return
    assert len(script.splitlines()) - len(plain.splitlines()) in (0, 1)
    assert [line for line in script.splitlines() if not line.startswith("#SBATCH")] == [
        line for line in plain.splitlines() if not line.startswith("#SBATCH")
    ]


@pytest.mark.parametrize("name", ["100%", "50%j", "%A %a %%", "a%tb"])
def test_percent_signs_of_folders_are_not_slurms(tmp_path, name):
    root = tmp_path / name
    text = text_of(root, count=3)
    logs = str(root / "sweep" / "jobs").replace("%", "%%")
    assert options(text)["output"] == f"{logs}/%A_%a_0_log.out"
    words = srun(text)
    assert words[words.index("--output") + 1] == f"{logs}/%A_%a_%t_log.out"
    assert str(root / "sweep/submissions/TOKEN.jsonl") in words, "no pattern there"


@pytest.mark.parametrize("name", ["new\nline", "esc\x1b", os.fsdecode(b"raw\xff")])
def test_folders_that_no_script_can_hold_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="holds characters that no batch script can hold"):
        text_of(tmp_path, cwd=tmp_path / name)


def test_a_backslash_in_the_folder_of_logs_is_refused(tmp_path):
    with pytest.raises(UserError, match="Slurm writes into no folder with"):
        text_of(tmp_path / "a\\b", cwd=tmp_path)


def test_a_colon_in_the_root_is_refused(tmp_path):
    with pytest.raises(UserError, match="Python imports from no folder with ':'"):
        text_of(tmp_path / "a:b", cwd=tmp_path)


@pytest.mark.parametrize("key", ["mail_{}", "mail-{}"])
def test_slurm_mails_once_for_an_array(tmp_path, key):
    """Slurm mails for each element only where ARRAY_TASKS is among the types (sbatch(1)): that is the user's to say."""
    asked = {key.format("type"): "END,FAIL", key.format("user"): "me@lab.org"}
    text = text_of(tmp_path, {"additional_parameters": asked}, count=9)
    found = options(text)
    assert found["mail-type"] == "END,FAIL" and found["mail-user"] == "me@lab.org" and found["array"] == "0-8%9"
    assert "ARRAY_TASKS" not in text
