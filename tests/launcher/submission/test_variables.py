"""Environment variables of a site: what a batch script says, what a process here is given, and how sbatch is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as given_some
from hypothesis import settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.schema import ContainerConfig, SiteConfig
from launcher.submission.resources import resources_of
from launcher.submission.variables import export_lines, export_option, given, say_hints, scratch_lines, variables_here
from tests.launcher.jobs import hardware

NAMES = st.from_regex(r"V_[A-Z]{1,3}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=12).filter(str.isprintable)
SHOW = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"


def seen_by_a_job(site: SiteConfig, env: dict[str, str]) -> dict[str, str]:
    """What the lines of a batch script leave in the environment."""
    lines = [*export_lines(site), *(line for line in scratch_lines(site) if line.startswith("export"))]
    done = subprocess.run(["bash", "-c", "\n".join([*lines, SHOW])], env=env, capture_output=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@settings(max_examples=25, deadline=None)
@given_some(st.dictionaries(NAMES, TEXTS | st.integers(), max_size=4), st.dictionaries(NAMES, TEXTS, max_size=3))
def test_a_batch_script_and_a_process_here_are_given_the_same(plain, node):
    site = SiteConfig(env=plain, scratch="/x/${HOME}/$V_A.b" if node.get("V_A") or plain.get("V_A") else "/x y/$HOME")
    env = {name: value for name, value in node.items() if value} | {"HOME": "/h o'm\"e", "PATH": os.environ["PATH"]}
    here = variables_here(site, env)
    assert seen_by_a_job(site, env).items() >= here.items()


def test_a_scratch_that_names_what_the_node_has_not_ends_the_job_and_says_so():
    site = SiteConfig(scratch="$NO_SUCH/x")
    with pytest.raises(UserError, match=r"site\.scratch=\$NO_SUCH/x: NO_SUCH is not set on this machine"):
        variables_here(site, {})
    done = subprocess.run(
        ["bash", "-c", "\n".join([*scratch_lines(site)[:1], "echo on"])], capture_output=True, text=True
    )
    assert done.returncode != 0 and "NO_SUCH: site.scratch: is not set on this node" in done.stderr and not done.stdout


def test_variables_of_a_run_in_this_process_are_gone_after_it():
    env = {"A": "before", "C": "c"}
    with given(env, {"A": "a", "B": "b"}):
        assert env == {"A": "a", "B": "b", "C": "c"}
    assert env == {"A": "before", "C": "c"}


@pytest.mark.parametrize(
    ("said", "line", "option"),
    [
        ("", None, []),
        ("ALL", "NONE", []),
        ("NONE", None, ["--export=A,B"]),
        ("NIL", None, ["--export=A,B"]),
        ("HOME,PATH", None, ["--export=HOME,PATH,A,B"]),
        ("ALL,X=1", None, []),
        ("", "NONE", ["--export=A,B"]),
        ("", "ALL", []),
    ],
)
def test_secrets_pass_by_name_where_sbatch_exports_little(said, line, option):
    queue: dict[str, Any] = {"additional_parameters": {"export": line}} if line else {}
    secret = resources_of(hardware(), SiteConfig(secrets={"B": "bbbb", "A": "aaaa", "C": None}), queue)
    assert export_option(secret, said) == option
    assert export_option(resources_of(hardware(), SiteConfig(), queue), said) == []


def test_secrets_stand_in_no_line(tmp_path: Path):
    site = SiteConfig(env={"A": 1}, secrets={"TOKEN": "hunter2hunter2"}, scratch="/disk")
    assert "hunter2" not in "".join([*export_lines(site), *scratch_lines(site), repr(site)])
    assert variables_here(site, {})["TOKEN"] == "hunter2hunter2"


def test_what_looks_like_a_secret_gets_a_hint_and_a_container_that_is_not_used_a_word(capsys):
    names = ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD"]
    site = SiteConfig(env=dict.fromkeys([*names, "PATH_TO_KEYS"], "x"), container=ContainerConfig(image="a/b"))
    say_hints(site, here=False)
    hinted = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in hinted] == [f"site.env.{name}" for name in names]
    say_hints(SiteConfig(container=site.container), here=True)
    assert "what runs on this machine runs without it" in capsys.readouterr().err
