"""A site is one file; what does not fit is said in one line, and what is secret is never typed or copied."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from launcher.compose import require_no_typed_secret
from launcher.runtime.errors import UserError
from launcher.runtime.redaction import forget_secrets
from launcher.runtime.sections import parse
from launcher.schema import SiteConfig
from launcher.site import compose_site, site_names
from tests.conftest import REPOSITORY, compose_values, type_here
from tests.integration.user import TASK
from tests.launcher.fake_slurm import FakeSlurm

TOY = ("task.target=toytask:train", "task.schema=toytask:Config", "tracker=none", "launch.name=s")
SECRET = "a-secret-of-22-letters"


class Desk:
    """A user's folder, who keeps sites of their own and types commands to a small Slurm."""

    def __init__(self, folder: Path) -> None:
        self.home, self.sites = folder / "home", folder / "config" / "seemore" / "site"
        self.home.mkdir()
        self.sites.mkdir(parents=True)
        (self.home / "toytask.py").write_text(TASK)
        self.slurm = FakeSlurm(folder / "slurm")
        self.env = self.slurm.env | {"XDG_CONFIG_HOME": str(folder / "config"), "OMP_NUM_THREADS": "1"}

    def site(self, text: str, name: str = "lab") -> Path:
        path = self.sites / f"{name}.yaml"
        path.write_text(text)
        return path

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        flags = [word for word in words if word == "-m"]
        return type_here(self.home, self.env, *flags, *TOY, *words[len(flags) :])

    def refused(self, *words: str) -> str:
        """The one line of an error."""
        done = self.type(*words, "hydra/launcher=submitit_slurm", "site=lab")
        assert done.returncode == 1 and not (self.home / "runs").exists(), done.stdout + done.stderr
        assert self.slurm.calls("sbatch") == []
        (line,) = done.stderr.splitlines()
        return line


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def composed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SiteConfig]]:
    """``composed("site=lab", …)``: the site as it is composed in this process, whose secrets are forgotten after."""
    monkeypatch.setenv("XDG_CONFIG_HOME", desk.env["XDG_CONFIG_HOME"])
    yield lambda *words: parse(SiteConfig, compose_values(*words)["site"], "site")
    forget_secrets()


@pytest.mark.parametrize("head", ["", "defaults: [default]\n"])
def test_a_users_file_names_only_what_differs(desk, composed, head):
    desk.site(head + "partition: low\nenv: {NCCL_DEBUG: INFO}\n")
    site = composed("site=lab", "site.account=lab", "site.partition=high", "+site.env.A=1")
    assert (site.partition, site.account, site.env) == ("high", "lab", {"NCCL_DEBUG": "INFO", "A": 1})
    assert dataclasses.replace(site, partition=None, account=None, env={}) == SiteConfig(), "all else is as by default"


def test_a_site_is_chosen_by_the_environment_and_may_build_upon_another(desk, composed, monkeypatch):
    desk.site("partition: low\nsetup: [module load cuda]\n")
    desk.site("defaults: [lab]\nconstraint: fast\n", "lab_fast")
    monkeypatch.setenv("LAUNCHER_SITE", "lab_fast")
    site = composed()
    assert (site.partition, site.constraint, site.setup) == ("low", "fast", ["module load cuda"])
    assert compose_site("lab").constraint is None and compose_site(None) == site
    assert {"default", "disposable", "lab", "lab_fast"} <= set(site_names())


REFUSED = {
    "unknown key": ("partitoin: low", ["unknown key 'site.partitoin'", "did you mean 'partition'?", "lab.yaml)"]),
    "image, a file": ("container: {image: ~/none.sif}", ["image=~/none.sif: there is no such file here"]),
    "value of a secret": ("secrets: {PIN: 12345678}", ["secrets.PIN: should be a text", "lab.yaml)"]),
    "secret not set": ("secrets: {A: '${oc.env:NOT_SET_HERE}'}", ["'NOT_SET_HERE' not found"]),
    "shown": (f"secrets: {{A: {SECRET}}}\nenv: {{B: 'x${{site.secrets.A}}'}}", ["site.env.B: holds the value of"]),
    "shown to a setup line": (f"secrets: {{A: {SECRET}}}\nsetup: ['export A={SECRET}']", ["site.setup: holds the"]),
    "no YAML": ("partition: [low", ["lab.yaml, line 2: cannot be read as YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_submitted(desk, what):
    text, said = REFUSED[what]
    desk.site(text + "\n")
    line = desk.refused()
    assert all(words in line for words in said), line
    assert "12345678" not in line and SECRET not in line


BAD = {
    "key of the container": ("container: {imag: x.sif}", ["'site.container.imag'", "did you mean 'image'?"]),
    "runtime": ("container: {runtime: docker}", ["site.container.runtime='docker'", "'apptainer', 'singularity'"]),
    "mount": ("container: {mounts: [data]}", ["mounts: 'data' should be source:target or source:target:ro"]),
    "mount, relative": ("container: {mounts: ['/a:b']}", ["mounts: '/a:b' should be"]),
    "mount, how": ("container: {mounts: ['/a:/b:rx']}", ["mounts: '/a:/b:rx' should be"]),
    "mount, two in one": ("container: {mounts: ['/a:/b,/c:/d']}", ["'/a:/b,/c:/d' should be"]),
    "environment hidden": ("container: {args: [--cleanenv]}", ["args: --cleanenv hides the environment"]),
    "name": ("env: {NO-NAME: x}", ["env: 'NO-NAME' is no name of an environment variable"]),
    "name of a secret": ("secrets: {2FA: secretsecret}", ["secrets: '2FA' is no name of an environment variable"]),
    "Slurm's own": ("env: {SLURM_JOB_ID: 1}", ["env.SLURM_JOB_ID: is Slurm's or the launcher's own"]),
    "value": ("env: {A: [1]}", ["env.A=[1]: should be a text or a number"]),
    "secrets": ("secrets: [secretsecret]", ["site.secrets='<redacted>'", "should be"]),
    "in both": ("env: {A: x}\nsecrets: {A: secretsecret}", ["A stands in env and in secrets"]),
    "scratch": ("scratch: $(rm -rf /)", ["scratch='$(rm -rf /)': should be an absolute folder"]),
    "scratch, relative": ("scratch: here", ["scratch='here': should be an absolute folder"]),
    "type of GPUs": ("gpu_type: gpu:a100:4", ["gpu_type='gpu:a100:4': should be one word of sinfo"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_said_in_one_line_that_shows_no_secret(what):
    text, said = BAD[what]
    with pytest.raises(UserError) as caught:
        parse(SiteConfig, yaml.safe_load(text), "site")
    line = str(caught.value)
    assert all(words in line for words in said), line
    assert "\n" not in line and "secretsecret" not in line


@pytest.mark.parametrize("word", ["+site.secrets.A={}", "++site.secrets={{A: {}}}", "~site.secrets.B={}"])
def test_a_typed_secret_is_one_however_it_is_typed(word):
    with pytest.raises(UserError, match="is not to be typed") as caught:
        require_no_typed_secret(["optim.lr=1", word.format(SECRET)])
    assert SECRET not in str(caught.value)
    require_no_typed_secret(["site=lab", "site.env.A=1", "launch.name=site.secrets"])


@pytest.mark.parametrize("words", [["site.secrets.B={}"], ["-m", "site.secrets.B={},x"]], ids=["one", "sweep"])
def test_a_secret_that_is_typed_is_refused_without_being_shown(desk, words):
    desk.site("secrets: {B: null}\n")
    line = desk.refused(*(word.format(SECRET) for word in words))
    assert "site.secrets" in line and "is not to be typed" in line and SECRET not in line


def test_a_secret_that_a_sweep_varies_is_refused(desk):
    desk.site("partition: low\n")
    folder = desk.sites.parent / "experiment"
    folder.mkdir()
    (folder / "two.yaml").write_text(
        f"# @package _global_\nhydra: {{sweeper: {{params: {{+site.secrets.A: '{SECRET},x'}}}}}}\n"
    )
    line = desk.refused("-m", "experiment=two")
    assert "is not to be typed" in line and SECRET not in line


def test_a_secret_under_another_key_is_refused(desk):
    desk.site(f"secrets: {{A: {SECRET}}}\n")
    assert "launch.name: holds the value of site.secrets.A" in desk.refused("launch.name=${site.secrets.A}")
    line = desk.refused("hydra.launcher.comment='${site.secrets.A}'")
    assert "hydra.launcher.comment: holds the value of site.secrets.A" in line and SECRET not in line


def test_a_secret_in_a_file_that_would_be_copied_with_the_code_is_refused(desk):
    desk.site(f"secrets: {{A: {SECRET}}}\n")
    subprocess.run(["git", "-C", str(desk.home), "init", "-q"], check=True)
    (desk.home / "site").mkdir()
    (desk.home / "site" / "lab.yaml").write_text(f"secrets: {{A: {SECRET}}}\n")
    line = desk.refused()
    assert "site/lab.yaml: holds the value of site.secrets.A" in line and SECRET not in line


def test_a_secret_that_is_null_is_not_handed_on_and_one_of_ones_own_environment_is(desk):
    desk.site("secrets: {A: '${oc.env:MINE}', B: '${oc.env:NOT_SET_HERE,null}'}\n")
    desk.env["MINE"] = SECRET
    done = desk.type("hydra/launcher=submitit_slurm", "site=lab")
    assert done.returncode == 0 and SECRET not in done.stdout + done.stderr
    files = [path for path in (desk.home / "runs").rglob("*") if path.is_file()]
    (script,) = (path for path in files if path.suffix == ".sh")
    assert "export LAUNCHER_SECRETS=A\n" in script.read_text() and not [
        path for path in files if SECRET.encode() in path.read_bytes()
    ]


def test_the_files_of_the_readme_are_sites(desk, composed, monkeypatch):
    readme = (REPOSITORY / "launcher" / "README.md").read_text()
    by_hand, container = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    desk.site(by_hand)
    site = composed("site=lab")
    assert (site.gpu_type, site.known_secrets) == ("a100", {"WANDB_API_KEY": SECRET}) and site.scratch.endswith(
        "JOB_ID"
    )
    desk.site("defaults: [lab]\n" + container, "boxed")
    boxed = composed("site=boxed")
    assert boxed.container.mounts == ["/datasets:/datasets:ro"] and (boxed.python, boxed.partition) == (
        "python3",
        "gpu",
    )


def test_nothing_is_said_of_other_sites_that_are_broken(desk):
    desk.site("partition: low\n")
    desk.site("partition: [\n", "broken")
    assert "unknown key 'site.partitoin'" in desk.refused("site.partitoin=x")


@pytest.fixture(autouse=True)
def _no_site_of_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name in ("LAUNCHER_SITE", "XDG_CONFIG_HOME")]:
        monkeypatch.delenv(name)
