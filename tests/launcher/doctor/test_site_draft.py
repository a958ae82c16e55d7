"""The file that ``doctor --write-site`` drafts: what it says, where from, and that it can be chosen at once."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.__main__ import main
from launcher.doctor.site_draft import Seen, text_of
from launcher.doctor.trial import Wish, script_text
from launcher.site import compose_site
from tests.launcher.recorded_slurm import AWAY, RecordedSlurm

PARTITIONS = {"gpu": {"PartitionName": "gpu", "Default": "YES"}, "cpu": {"PartitionName": "cpu"}}
GPU_NODES = ("gpu", "gpu:a100:4(S:0-1)", "fast,ib")
RANK: dict[str, Any] = {
    "host": "n1", "python": "3.11.7", "torch": "2.6", "interface": None, "interfaces": {"eth0": "10.0.0.1"},
    "disks": ["TMPDIR", "/scratch"], "bf16": True,
}  # fmt: skip


def drafted(**changes: Any) -> tuple[dict[str, Any], str]:
    """The values that it sets, and its text."""
    seen: dict[str, Any] = {
        "wish": Wish(Path(), python="/env/bin/python"), "partitions": PARTITIONS,
        "kinds": [GPU_NODES, ("cpu", "(null)", "(null)")],
        "associations": [("lab", ["normal", "high"], "normal")],
        "ranks": [RANK, RANK | {"host": "n2", "interface": "ib0", "disks": ["/scratch"]}],
    }  # fmt: skip
    text = text_of("mine", Seen(**(seen | changes)))
    return yaml.safe_load(text) or {}, text


def test_all_that_is_known_is_said_with_where_it_was_taken_from():
    values, text = drafted(cluster="big\x1b one")
    assert values == {
        "partition": "gpu", "account": "lab", "qos": "normal", "gpu_type": "a100", "python": "/env/bin/python",
        "interface": "ib0", "scratch": "/scratch/$USER", "bf16": True,
    }  # fmt: skip
    assert all(line.startswith("# ") or "  # " in line for line in text.splitlines())
    assert "# constraint:  # sinfo: features of its nodes: fast, ib\n" in text
    assert "python: /env/bin/python  # the test job ran it on n1, n2: Python 3.11.7, torch 2.6\n" in text


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"partitions": {"a": {}, "b": {}}}, "partition", "one of: a, b"),
        ({"associations": [("lab", [], ""), ("root", [], "")]}, "account", "sacctmgr: one of: lab, root"),
        ({"associations": []}, "account", "not known: no accounting"),
        ({"associations": [("lab", ["normal"], "")]}, "qos", "the only one: normal"),
        ({"kinds": [GPU_NODES, ("gpu", "gpu:h100:8", "")]}, "gpu_type", "sinfo: one of: a100, h100"),
        ({"kinds": [("gpu", "gpu:2", "")]}, "gpu_type", "GPUs have no types"),
        ({"kinds": []}, "gpu_type", "no GPUs"),
        ({"ranks": []}, "python", "not known"),
        ({"ranks": [RANK, RANK | {"torch": "2.7"}]}, "python", "not known"),
        ({"ranks": [RANK, RANK | {"interface": "lo"}]}, "interface", "there are: eth0 10.0.0.1"),
        ({"ranks": [RANK, RANK | {"disks": []}]}, "scratch", "not known"),
        ({"ranks": []}, "bf16", "--gpus"),
    ],
)
def test_what_is_not_known_stands_there_commented_out(changes, key, told):
    values, text = drafted(**changes)
    (line,) = (line for line in text.splitlines() if line.startswith(f"# {key}:"))
    assert key not in values and told in line


def test_what_was_asked_for_wins():
    values, _ = drafted(wish=Wish(Path(), options={"partition": "cpu", "account": "x", "qos": "q", "constraint": "y"}))
    assert (values["partition"], values["account"], values["qos"], values["constraint"]) == ("cpu", "x", "q", "y")
    assert "gpu_type" not in values, "of the nodes of that partition"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedSlurm:
    recorded = RecordedSlurm(tmp_path / "slurm")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.delenv("LAUNCHER_SITE", raising=False)
    monkeypatch.setenv("PATH", recorded.env["PATH"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    recorded.says("sbatch", "slurm 22.05.8\n")
    recorded.says("scontrol", "PartitionName=low Default=YES TotalNodes=4\n")
    recorded.says("sinfo", "low|gpu:v100:2|(null)\n")
    return recorded


def test_it_is_written_for_its_owner_alone_and_can_be_chosen_at_once(slurm, tmp_path, capsys):
    words = ["doctor", "--no-job", "--write-site", "mine"]
    assert main(words) == 0
    path = tmp_path / "config" / "seemore" / "site" / "mine.yaml"
    assert f"wrote {path}" in capsys.readouterr().err and stat.S_IMODE(path.stat().st_mode) == 0o600
    site = compose_site("mine")
    assert (site.partition, site.gpu_type, site.setup) == ("low", "v100", [])
    before = path.read_text()
    assert main(words) == 1 and "is there already and stays as it is" in capsys.readouterr().err
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("name", "told"), [("../x", "should be a plain name"), ("", "should be a plain name"), ("disposable", "already")]
)
def test_names_that_cannot_be_are_refused_before_slurm_is_asked(slurm, tmp_path, capsys, name, told):
    assert main(["doctor", "--no-job", "--write-site", name]) == 1
    assert told in capsys.readouterr().err and slurm.calls == [] and not (tmp_path / "config").exists()


def test_nothing_is_written_where_slurm_is_away_or_the_folder_cannot_be(slurm, tmp_path, capsys):
    slurm.says("scontrol", err=AWAY, code=1)
    assert main(["doctor", "--no-job", "--write-site", "mine"]) == 1
    assert "not written, as Slurm has told nothing" in capsys.readouterr().err and not (tmp_path / "config").exists()
    slurm.says("scontrol", "PartitionName=low Default=YES TotalNodes=4\n")
    (tmp_path / "config").touch()
    assert main(["doctor", "--no-job", "--write-site", "mine"]) == 1
    assert "error: " in capsys.readouterr().err


def test_the_test_job_obeys_the_site(tmp_path):
    text = script_text(Wish(tmp_path, gpus=2, gpu_type="a100", setup=["module load x"]), tmp_path)
    assert "#SBATCH --gpus-per-node=a100:2\nmodule load x\nexport PYTHONPATH" in text
