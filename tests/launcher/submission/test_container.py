"""A site's container in the batch script: Apptainer inside of srun, pyxis as options of srun, and the door after it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.errors import UserError
from launcher.schema import ContainerConfig
from launcher.submission.container import image_of
from tests.launcher.submission.test_batch import NASTY, srun, text_of
from tests.launcher.submission.test_requeue_script import RUNNING, Script

IMAGE = "docker://lab/torch:2.6"


def container(**values: Any) -> dict[str, Any]:
    return {"container": ContainerConfig(image=IMAGE, **values)}


def test_apptainer_stands_between_srun_and_python(tmp_path):
    text = text_of(tmp_path, site=container(mounts=["/data:/data:ro", "~/x:/x"], args=["--writable-tmpfs"]))
    words = srun(text)
    inside = words[words.index("apptainer") :]
    binds = [inside[i + 1] for i, word in enumerate(inside) if word == "--bind"]
    assert binds == [f"{tmp_path}:{tmp_path}", "/data:/data:ro", f"{Path.home()}/x:/x"], "what is inside is bound once"
    assert inside[:2] == ["apptainer", "exec"] and "--nv" not in inside
    assert inside[inside.index("--pwd") :][:5] == ["--pwd", str(tmp_path), "--writable-tmpfs", IMAGE, "python"]
    assert inside[inside.index("python") + 1 :][:3] == ["-uP", "-m", "launcher.runtime.worker"]


@pytest.mark.parametrize(("args", "flag"), [([], True), (["--rocm"], False)])
def test_gpus_are_handed_in_where_they_are_asked_for(tmp_path, args, flag):
    text = text_of(tmp_path, gpus_per_node=1, site=container(runtime="singularity", args=args))
    words = srun(text)
    assert words[words.index("singularity") :][:2] == ["singularity", "exec"] and ("--nv" in words) == flag


def test_pyxis_is_asked_by_options_of_srun(tmp_path):
    """Their names and forms as in its README, "Usage"."""
    site = container(runtime="pyxis", mounts=["/data:/data:ro"], args=["--no-container-mount-home"])
    site |= {"env": {"A": "x"}, "secrets": {"TOKEN": "hunter2hunter2"}, "scratch": "/disk", "python": "python3"}
    words = srun(text_of(tmp_path, gpus_per_node=1, site=site))
    options = words[: words.index("python3")]
    there = {word.partition("=")[0]: word.partition("=")[2] for word in options if word.startswith("--container")}
    scratch = "$LAUNCHER_SCRATCH:$LAUNCHER_SCRATCH"  # put in by the shell: see below
    assert there["--container-mounts"] == f"{tmp_path}:{tmp_path},{scratch},/data:/data:ro"
    assert there["--container-image"] == IMAGE and there["--container-workdir"] == str(tmp_path)
    assert set(there["--container-env"].split(",")) >= {"PYTHONPATH", "A", "TOKEN", "LAUNCHER_SCRATCH"}
    assert options[-1] == "--no-container-mount-home" and "apptainer" not in words and "--nv" not in words


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_the_shell_puts_in_the_scratch_and_acts_upon_nothing_else(tmp_path, runtime):
    name = NASTY.replace("\\", "").replace(",", "").replace(":", "")[:80]
    script = Script(tmp_path)
    (tmp_path / name).mkdir()
    site = container(runtime=runtime, mounts=[f"/{name}:/{name}"], args=[f"--x={name}"]) | {"scratch": "/disk/$USER"}
    text = text_of(tmp_path / name, site=site)
    (tmp_path / "script.sh").write_text(text)
    env = script.slurm.env | {"SLURM_JOB_ID": "15", "SLURM_JOB_NUM_NODES": "2", "USER": "me you"}
    done = subprocess.run(["bash", str(tmp_path / "script.sh")], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made, ran = script.slurm.called("srun")
    assert made == "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 mkdir -p -- /disk/me you"
    assert "/disk/me you:/disk/me you" in ran and f"/{name}:/{name}" in ran and f"--x={name}" in ran
    assert not list(tmp_path.rglob("canary"))


def test_where_the_scratch_cannot_be_made_the_job_ends(tmp_path):
    script = Script(tmp_path)
    script.says("srun", code=1)
    (tmp_path / "script.sh").write_text(text_of(tmp_path, site={"scratch": "/disk"}))
    env = script.slurm.env | {"SLURM_JOB_ID": "15", "SLURM_JOB_NUM_NODES": "1"}
    done = subprocess.run(["bash", str(tmp_path / "script.sh")], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "site.scratch: /disk cannot be made on each node" in done.stderr
    assert len(script.slurm.called("srun")) == 1


@pytest.mark.parametrize("said", [IMAGE, "nvcr.io#nvidia/pytorch:24.01-py3", "lab/torch", "library://lab/torch"])
def test_what_a_registry_has_stays_as_it_is(tmp_path, said):
    assert image_of(ContainerConfig(image=said), tmp_path) == said


def test_a_path_is_made_absolute_and_must_be_there(tmp_path):
    (tmp_path / "a.sif").touch()
    (tmp_path / "box").mkdir()
    assert image_of(ContainerConfig(image="a.sif"), tmp_path) == str(tmp_path / "a.sif")
    assert image_of(ContainerConfig(image="./box"), tmp_path) == str(tmp_path / "box")
    for said in ("b.sqsh", "../none", str(tmp_path / "none"), "~/no-such-image.sif"):
        with pytest.raises(UserError, match="there is no such file here"):
            image_of(ContainerConfig(image=said), tmp_path)


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_folders_that_cannot_be_mounted_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="':'"):
        text_of(tmp_path / name, cwd=tmp_path, site=container())


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
@pytest.mark.parametrize("out_here", [True, False], ids=["the host's Python can", "it cannot"])
def test_the_door_is_the_hosts_pythons_where_that_can_and_else_the_containers(tmp_path, monkeypatch, runtime, out_here):
    script = Script(tmp_path)
    host = tmp_path / "slurm" / "bin" / "python"
    host.rename(host.with_name("host"))  # notes its calls as python does
    monkeypatch.setattr(sys, "executable", str(host.with_name("host")))
    for name in ("host", "apptainer"):
        script.slurm.says(name, code=0 if out_here else 79)
        script.slurm.does(name, "")
    (host.with_name("apptainer")).write_text(host.with_name("host").read_text())
    (host.with_name("apptainer")).chmod(0o755)
    script.says("srun", code=79 if runtime == "pyxis" and not out_here else 75)
    (tmp_path / "script.sh").write_text(text_of(tmp_path, site=container(runtime=runtime)))
    env = script.slurm.env | {"SLURM_JOB_ID": "15"}
    script.says("scontrol", RUNNING)
    done = subprocess.run(["bash", str(tmp_path / "script.sh")], env=env, cwd=tmp_path, timeout=60)
    first, *calls = script.slurm.calls
    assert first.startswith("srun ") and done.returncode in (75, 79)
    assert calls[0] == "host -Pc import launcher.requeue"
    if out_here:
        assert calls[1].startswith("host -uP -m launcher.requeue ") and calls[1].endswith(" --code 75")
        assert calls[2:] == ["sleep 60"], "the shell asks Slurm only where Python cannot"
    else:
        step = "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --container-image=" + IMAGE
        assert calls[1].startswith(step if runtime == "pyxis" else "apptainer exec --bind ")
        assert " python -uP -m launcher.requeue " in calls[1]
        assert calls[2:] == ["scontrol show job --oneliner 15", "scontrol requeue 15", "sleep 60"]


def test_without_a_container_the_door_is_as_it_was(tmp_path):
    text = text_of(tmp_path)
    assert "launcher.requeue'" not in text and shlex.quote(sys.executable) in text
