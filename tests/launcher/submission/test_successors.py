"""``launch.continue``: requeue or chain, what is submitted then, and what becomes of it where Slurm takes no more."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import slurm_cli
from launcher.compose import compose_values
from launcher.plan import read_sections
from launcher.runtime.errors import UserError
from launcher.runtime.sections import parse, typed_as
from launcher.runtime.sweepdir import SweepDir
from launcher.schema import LaunchConfig
from launcher.slurm_cli import Slurm, SlurmError
from launcher.submission.batch import script_text
from launcher.submission.commit import Wanted, to_slurm
from launcher.submission.dry_run import show
from launcher.submission.jobs import Job, Receipt
from launcher.submission.packing import Packing
from launcher.submission.reconcile import Rule
from launcher.submission.submit import settle
from launcher.submission.successors import REQUEUE, Continuation, forbidden, hint, require_no_chain
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.jobs import job, no_code

CHAIN = Continuation("chain", 2)
PREEMPTS = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "JobRequeue": "1"}
PARTITIONS = {
    "low": "Default=YES PreemptMode=REQUEUE",
    "cut": "Default=NO PreemptMode=CANCEL",
    "high": "Default=NO PreemptMode=OFF",
}


def launch(**values: Any) -> LaunchConfig:
    return parse(LaunchConfig, {"name": None, "root": "runs", **values}, "launch")


def test_it_is_typed_as_continue():
    assert read_sections(compose_values(["launch.continue=chain", "launch.chain=5"])).launch.continue_ == "chain"
    assert Continuation.of(launch()) == Continuation("auto", 3)
    assert "continue" in typed_as(LaunchConfig).values() and typed_as(LaunchConfig)["name"] == "name"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"continue": "chan"}, "launch.continue='chan': should be 'auto', 'requeue' or 'chain'; did you mean 'chain'?"),
        (
            {"continue_": "chain"},
            "unknown key 'launch.continue_'; did you mean 'continue'? (allowed here: beside, chain, continue,",
        ),
        ({"chain": 0}, "launch.chain=0: should be greater than or equal to 1"),
        ({"chain": -1}, "launch.chain=-1: should be greater than or equal to 1"),
        ({"chain": 2, "continue": "requeue"}, "launch: chain=2 is for launch.continue=chain or auto, not for requeue"),
    ],
)
def test_what_cannot_be(values, said):
    with pytest.raises(UserError) as error:
        launch(**values)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("asked", [{"continue": "chain"}, {"chain": 2}])
def test_without_slurm_there_are_no_successors(asked):
    with pytest.raises(UserError, match=r"^launch[.].*: successors are jobs of Slurm; .*hydra/launcher=basic"):
        require_no_chain(launch(**asked), "basic")
    require_no_chain(launch(**{"continue": "requeue"}), "basic")
    require_no_chain(launch(), "basic")


@pytest.mark.parametrize(
    ("config", "partition", "why"),
    [
        ({}, None, None),
        ({"JobRequeue": "0"}, None, "JobRequeue=0"),
        (PREEMPTS, None, None),
        (PREEMPTS, "high", None),
        (PREEMPTS, "cut", "PreemptMode=CANCEL of partition cut"),
        (PREEMPTS, "low,cut", "PreemptMode=CANCEL of partition cut"),
        (PREEMPTS, "gone", None),
        (PREEMPTS | {"PreemptType": "preempt/none"}, "cut", None),
    ],
)
def test_what_the_cluster_says(tmp_path, config, partition, why):
    slurm = FakeSlurm(tmp_path / "slurm", config=config, partition_settings=PARTITIONS)
    assert forbidden(Slurm(slurm.env), partition) == why


def test_a_partition_without_a_mode_of_its_own_has_the_clusters(tmp_path):
    config = PREEMPTS | {"PreemptMode": "GANG,CANCEL"}
    slurm = FakeSlurm(tmp_path / "slurm", config=config, partition_settings={"low": "Default=YES"})
    assert forbidden(Slurm(slurm.env), None) == "PreemptMode=CANCEL of partition low"


class Sweep:
    """Runs that are submitted with successors to a Slurm of one file."""

    def __init__(self, folder: Path, **state: Any) -> None:
        self.slurm = FakeSlurm(folder / "slurm", **state)
        self.root = folder / "runs"
        self.dir = SweepDir(self.root / "sweep")
        self.jobs = [job(self.root, number) for number in range(3)]

    def wanted(
        self, jobs: list[Job] | None = None, how: Continuation = CHAIN, packing: Packing | None = None
    ) -> Wanted:
        snapshot = no_code(self.dir.path, self.root)
        return Wanted(self.dir, jobs or self.jobs, snapshot, self.dir.job_logs, self.root, Rule(), packing, None, how)

    def submit(self, *args: Any, **values: Any) -> list[Receipt]:
        return list(to_slurm(self.wanted(*args, **values), Slurm(self.slurm.env)).values())

    @property
    def sbatch(self) -> list[str]:
        """Options of each call that submitted something."""
        return [" ".join(c[1:-1]) for c in self.slurm.calls("sbatch") if "--test-only" not in c]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(slurm_cli, "_PAUSES_S", (0.0, 0.0))
    return Sweep(tmp_path)


def test_each_array_is_followed_by_its_successors(sweep, capsys):
    receipts = sweep.submit()
    assert [receipt.job_id for receipt in receipts] == ["100_0", "100_1", "100_2"]
    assert sweep.sbatch == [
        "--parsable",
        "--parsable --dependency=afterany:100",
        "--parsable --dependency=afterany:101",
    ]
    (head,) = sweep.dir.read_submissions()
    assert [link.job_id for link in head.links] == ["100", "101", "102"]
    assert [link.runs for link in head.links] == [head.runs] * 3
    assert "launch.continue=chain: 2 successors for each job (launch.chain)\n" in capsys.readouterr().err
    scripts = [sweep.dir.script(link.token).read_text() for link in head.links]
    assert ["launcher.successor" in text for text in scripts] == [False, True, True]
    assert all(f"submissions/{head.token}.jsonl --submission {link.token}" in text
               for link, text in zip(head.links, scripts, strict=True)), "the plans are the head's"  # fmt: skip
    assert len(list(sweep.dir.path.glob("submissions/*.jsonl"))) == 1


def test_the_same_command_adopts_them(sweep):
    sweep.submit()
    assert [(r.state, r.job_id, r.new) for r in sweep.submit()] == [("SUBMITTED", f"100_{i}", False) for i in range(3)]
    assert len(sweep.sbatch) == 3


def test_runs_come_before_successors_where_slurm_takes_no_more(sweep, capsys):
    other = [*sweep.jobs[:2], replace(sweep.jobs[2], resources=job(sweep.root, 2, {"timeout_min": 7}).resources)]
    sweep.slurm.set(max_submit=5)
    assert {receipt.state for receipt in sweep.submit(other)} == {"SUBMITTED"}
    assert sweep.sbatch[:2] == ["--parsable", "--parsable"] and sweep.slurm.submitted == [2, 1, 2]
    said = capsys.readouterr().err
    assert said.count("launch.continue=chain: 2 successors for each job") == 1, "of both shapes"
    assert re.search(r"^0 of 2 successors of job 101 are queued: sbatch: .*AssocMaxSubmitJobLimit", said, re.MULTILINE)


def test_auto_asks_slurms_settings_once_for_a_thousand_runs(sweep, capsys):
    sweep.slurm.set(config=PREEMPTS, partition_settings=PARTITIONS)
    many = [job(sweep.root, number) for number in range(1000)]
    sweep.submit(many, how=Continuation("auto"))
    assert len(sweep.slurm.calls("scontrol")) == 2 and sweep.slurm.submitted == [1000]
    assert "launch.continue" not in capsys.readouterr().err
    assert "--chained" not in sweep.dir.script(sweep.dir.read_submissions()[0].token).read_text()


def test_auto_says_why(sweep, capsys):
    sweep.slurm.set(config={"JobRequeue": "0"})
    sweep.submit(how=Continuation("auto", 1))
    said = "launch.continue=auto: JobRequeue=0, so runs go on by a chain: 1 successor for each job (launch.chain)"
    assert said in capsys.readouterr().err and sweep.slurm.submitted == [3, 3]


def test_a_successor_that_was_cut_off_is_cleared_up(sweep):
    sweep.submit()
    (head,) = sweep.dir.read_submissions()
    lines = sweep.dir.submissions.read_text().splitlines()
    known = [line for line in lines if json.loads(line)["event"] != "submitted" or head.token in line]
    sweep.dir.submissions.write_text("\n".join(known) + "\n")  # both answers of sbatch were lost
    sweep.slurm.set(jobs={name: one for name, one in sweep.slurm.state["jobs"].items() if name != "102"})
    settle(sweep.dir, Slurm(sweep.slurm.env))
    (head,) = sweep.dir.read_submissions()
    assert [link.job_id for link in head.links] == ["100", "101"]
    assert [link.withdrawn for link in head.successors] == [False, True]


def test_packed_successors_have_the_queue_of_the_first(sweep):
    sweep.submit(packing=Packing(per_job=2, beside=1))
    (head,) = sweep.dir.read_submissions()
    assert [(link.job_id, link.workers) for link in head.links] == [("100", 2), ("101", 2), ("102", 2)]
    assert [path.name for path in sweep.dir.queue("x").parent.iterdir()] == [head.token]


def test_a_dry_run_shows_them(sweep, capsys, monkeypatch):
    wanted = sweep.wanted()
    monkeypatch.setattr("launcher.submission.dry_run.show_disk", lambda *_: None)  # these plans name no config
    show(sweep.dir, wanted.jobs, wanted.snapshot, Slurm(sweep.slurm.env), wanted.logs, Rule(), None, CHAIN)
    said = capsys.readouterr().out
    assert (
        "3 runs like this, each job followed by 2 successors (--dependency=afterany:JOB, one after the other)" in said
    )
    assert "--chained" in said and sweep.sbatch == []


def test_the_last_ones_end_at_once_where_the_first_ended_well(sweep):
    """What the first job's task would train is nothing: its plans name no module that is there."""
    for one in sweep.jobs:
        one.plan.rundir.path.mkdir(parents=True)
    sweep.submit(sweep.jobs[:1])
    sweep.jobs[0].plan.rundir.write_status(state="COMPLETED")
    jobs = sweep.slurm.state["jobs"]
    jobs["100"]["states"] = ["COMPLETED"]
    sweep.slurm.set(jobs=jobs)
    sweep.slurm.run()
    assert [one["states"] for one in sweep.slurm.state["jobs"].values()] == [["COMPLETED"]] * 3
    assert sweep.jobs[0].plan.rundir.attempt_events() == []


@pytest.mark.parametrize(("chained", "count", "doors"), [(False, 4, 1), (True, 1, 1), (True, 4, 2)])
def test_what_the_script_calls(tmp_path, chained, count, doors):
    from launcher.submission.batch import Batch

    folder = SweepDir(tmp_path / "sweep")
    batch = Batch.of(folder, "T", job(tmp_path, 0).resources, count, folder.job_logs)
    text = script_text(replace(batch, chained=chained), no_code(folder.path, tmp_path))
    assert text.count("-m launcher.requeue") == doors and ("--ended" in text) == (doors == 2)
    assert ('"$code" -ne 0 ] && [ -z "$ended"' in text) != chained
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_time_limit_that_is_not_granted_has_a_way_out():
    assert "hardware.time_min" in hint(SlurmError("sbatch: Requested time limit is invalid"))
    assert hint(SlurmError("sbatch: invalid partition")) == ""
    assert REQUEUE.successors([job(Path("x"), 0).resources], Slurm({})) == [0]
