"""Python and packages now, against those of a plan."""

from __future__ import annotations

import logging
import platform

from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.environment import drift, python_and_packages


def test_the_same_environment_has_not_drifted():
    assert drift(python_and_packages()) == []
    assert drift({}) == []


def test_each_difference_is_named():
    here = python_and_packages()
    packages = dict(here["packages"]) | {"torch": "0.1", "gone-for-good": "1.0"}
    del packages["numpy"]
    assert drift({"python": "3.1", "packages": packages}) == [
        f"python 3.1 -> {platform.python_version()}",
        "gone-for-good 1.0 is gone",
        f"numpy {here['packages']['numpy']} is new",
        f"torch 0.1 -> {here['packages']['torch']}",
    ]


@given(st.dictionaries(st.sampled_from(["torch", "numpy", "a", "B"]), st.sampled_from(["1", "2"])))
def test_every_package_that_differs_is_named_once(planned):
    now = python_and_packages()["packages"]
    assert len(drift({"packages": planned})) == sum(planned.get(n) != now.get(n) for n in {*planned, *now})


def test_a_job_warns_of_it_in_its_log(tmp_path):
    from launcher.runtime.job import run_job
    from launcher.runtime.plan import Plan
    from launcher.runtime.signals import StopFlag
    from tests.launcher.runtime.ranks import toy_plan

    plan = toy_plan(tmp_path, tasks_per_node=1)
    packages = python_and_packages()["packages"] | {"torch": "0.1"}
    run_job(Plan.from_json(plan.to_json() | {"environment": {"packages": packages}}), {}, StopFlag(), visible=False)
    said = plan.rundir.log(0).read_text()
    assert "WARNING launcher.runtime.job: the environment is not the one that was planned: torch 0.1 -> " in said
    assert logging.getLogger("launcher").level == logging.NOTSET
