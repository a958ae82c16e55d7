"""A run that is submitted again keeps off the nodes on which it broke down, where Slurm has others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.bad_nodes import Exclusion, exclude
from launcher.runtime.sweepdir import SweepDir
from launcher.slurm_cli import Slurm
from launcher.submission.commit import Wanted, to_slurm
from launcher.submission.packing import Packing
from launcher.submission.reconcile import Rule
from launcher.submission.submit import claim_folders
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.jobs import job, no_code


class Sweep:
    """Three runs, of which the second has FAILED and avoids nodes."""

    def __init__(self, root: Path, *nodes: str, queue: dict[str, Any] | None = None, **limits: int) -> None:
        self.slurm = FakeSlurm(root / "slurm")
        self.dir = SweepDir(root / "sweep")
        jobs = [job(root, number, queue) for number in range(3)]
        jobs[1].plan.execution["requeue"] = limits
        rundir = jobs[1].plan.rundir
        claim_folders(jobs[1:2])
        rundir.give_up("5 attempts in a row made no progress")
        for node in nodes:
            exclude(rundir, "7", Exclusion(node, "broke down: oh"))
        self._root, self._jobs = root, jobs

    def submit(self, **more: Any) -> list[str]:
        """``--exclude`` of each script that was submitted, in order; empty: it has none."""
        code = no_code(self.dir.path, self._root)
        wanted = Wanted(self.dir, self._jobs, code, self.dir.job_logs, self._root, Rule(failed=True), **more)
        to_slurm(wanted, Slurm(self.slurm.env, patient=False))
        texts = [Path(record["script"]).read_text() for record in self.slurm.state["jobs"].values()]
        return [",".join(re.findall(r"^#SBATCH --exclude='?(.*?)'?$", text, re.MULTILINE)) for text in texts]


def test_its_job_keeps_off_them_and_those_of_the_others_do_not(tmp_path, capsys):
    sweep = Sweep(tmp_path, "n2", "n3")
    assert sweep.submit() == ["", "n2,n3"] and sweep.slurm.submitted == [2, 1]
    assert "000000000001: avoids n2,n3, where it broke down before" in capsys.readouterr().err


@pytest.mark.parametrize("queue", [{"exclude": "n[7-9]"}, {"additional_parameters": {"exclude": "n[7-9]"}}])
def test_what_the_user_excludes_stays_so(tmp_path, queue):
    assert Sweep(tmp_path, "n2", queue=queue).submit() == ["n[7-9]", "n[7-9],n2"]


@pytest.mark.parametrize(("most", "scripts"), [(1, ["", "n2"]), (0, [""])])
def test_no_more_than_it_may(tmp_path, most, scripts):
    assert Sweep(tmp_path, "n2", "n3", max_excluded=most).submit() == scripts


def test_where_slurm_has_no_others_it_goes_there_again_and_that_is_said(tmp_path, capsys):
    sweep = Sweep(tmp_path, "n2")
    said = "allocation failure: Requested node configuration is not available"
    # The first question is of all, before anything is written.
    sweep.slurm.fault("sbatch --test-only", "fail", says=said, skip=1)
    assert sweep.submit() == [""] and sweep.slurm.submitted == [3]
    assert f"000000000001: does not avoid n2: sbatch: {said}" in capsys.readouterr().err


def test_packed_runs_share_their_jobs_and_avoid_none(tmp_path):
    assert Sweep(tmp_path, "n2").submit(packing=Packing(3, 1)) == [""]
