"""Why runs wait, in plain words, and which shape would start sooner: by recorded answers of Slurm 22.05."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.manage.advice import advise
from launcher.manage.reasons import explained
from launcher.manage.shapes import Shape, changes
from launcher.manage.status import show_status
from launcher.manage.survey import survey
from launcher.manage.targets import below
from launcher.runtime.errors import UserError
from launcher.runtime.sweepdir import SweepDir
from tests.launcher.recorded_slurm import AWAY, RecordedSlurm

SCRIPT = """\
#!/bin/bash
# Parameters
#SBATCH --array=0-3
#SBATCH --error=/runs/sweep/jobs/%A_%a_%t_log.err
#SBATCH --job-name=sweep
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --partition=low
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=40
srun true
"""
PARTITIONS = (
    "PartitionName=low Default=YES State=UP RootOnly=NO\n"
    "PartitionName=high Default=NO State=UP RootOnly=NO\n"
    "PartitionName=shut Default=NO State=DOWN RootOnly=NO\n"
)
NOW = datetime.now().replace(microsecond=0)


def at(minutes: int) -> str:
    """As Slurm writes a time so many minutes from now."""
    return (NOW + timedelta(minutes=minutes)).isoformat()


class Waiting:
    """A sweep of runs that wait for nodes, in a Slurm whose answers depend on what is asked."""

    def __init__(self, folder: Path) -> None:
        self.slurm, self.sweep = RecordedSlurm(folder / "slurm"), SweepDir(folder / "runs" / "sweep")
        self.slurm.says("scontrol", PARTITIONS)
        self._jobs: list[str] = []

    def add(self, run: str, job: str, reason: str = "Resources", start: str = "N/A", nodes: int = 2) -> None:
        """One more run, a job of its own that waits for ``reason``."""
        script = self.sweep.script(f"t{job}")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(SCRIPT.format(nodes=nodes))
        self.sweep.add_event("intent", f"t{job}", runs=[run], slurm_conf=None)
        self.sweep.add_event("submitted", f"t{job}", job_id=job)
        self.sweep.add_members([(run, ())])
        plan = {
            "run_id": run,
            "name": "sweep",
            "root": "/",
            "target": "a:b",
            "schema": "a:B",
            "execution": {"task": {}},
        }
        plan["science"] = {"trainer": {"batch_size": 16}}
        self.sweep.run(run).path.mkdir(parents=True)
        self.sweep.run(run).plan.write_text(json.dumps(plan))
        self._jobs.append(f"{job}|PENDING|{reason}|{start}|0:00||{script}\n")
        self.slurm.says("squeue", "".join(self._jobs))

    def answers(self, as_it_is: int, **others: int | str) -> None:
        """What ``sbatch --test-only`` says: minutes from now, or an error; options have underscores here."""
        lines = ['case "$(tail -n 1 "$here/calls")" in']
        for name, said in [*others.items(), ("", as_it_is)]:
            option = f"*--{name.replace('__', '=').replace('_', '-')}*" if name else "*"
            lines.append(f"{option}) {_printing(said)} ;;")
        self.slurm.does("sbatch", "\n".join([f"here='{self.slurm._folder}'", *lines, "esac"]))

    def advice(self):
        """What is told."""
        return advise(survey(below(self.sweep.path), self.slurm.env).rows, self.slurm.env)


def _printing(said: int | str) -> str:
    if isinstance(said, str):
        return f"echo 'allocation failure: {said}' >&2"
    extra = "echo 'sbatch:   Preempts: 1,2' >&2" if said < 0 else ":"
    return (
        f"echo 'sbatch: Job 5 to start at {at(abs(said) if said >= 0 else 0)} using 2 processors on nodes n[1-2] in "
        f"partition low' >&2; {extra}"
    )


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path)


def test_a_shape_that_starts_sooner_is_told_with_what_to_type(waiting):
    waiting.add("aaa", "7", start=at(120))
    waiting.answers(150, nodes__1=30, time__20=150, time__10=149, partition__high=-1)  # 30 of them are the line's
    (told,) = waiting.advice()
    assert (told.means, told.note) == ("what it asks for is not free yet", "")
    assert [(one.what, one.now, one.preempts) for one in told.suggestions] == [
        ("1 node instead of 2", True, False),
        ("partition high", True, True),
        ("a time limit of 10 min instead of 40", False, False),
    ]
    assert told.suggestions[0].overrides == ["hydra.launcher.nodes=1"] and told.expected == at(120)
    lines = list(told.lines())
    assert lines[0].startswith("aaa waits for 2 nodes, 1 task a node, 40 min, partition low: what it asks for")
    assert lines[1].startswith("  1 node instead of 2: could start now (asked: ")
    assert lines[1].endswith("about twice the time: hydra.launcher.nodes=1")
    assert lines[-1] == (
        "  to take one:  python -m launcher cancel aaa && python -m launcher resume aaa hydra.launcher.nodes=1"
    )


def test_runs_that_wait_for_the_same_are_asked_about_once_and_never_more_than_eight_times(waiting):
    for number in range(12):
        waiting.add(f"run{number}", str(number), nodes=8)
    waiting.answers(60)
    (told,) = waiting.advice()
    assert len(told.paths) == 12 and told.suggestions == []
    assert "no smaller shape" in told.note and next(told.lines()).startswith("12 runs wait for 8 nodes")
    tests = waiting.slurm.called("sbatch")
    assert 3 < len(tests) <= 8 and all("--test-only" in call for call in tests)
    assert {call.split()[0] for call in waiting.slurm.calls} == {"sbatch", "squeue", "scontrol"}, "nothing is changed"


def test_of_many_shapes_the_first_few_are_asked_about(waiting):
    for number in range(7):
        waiting.add(f"run{number}", str(number), nodes=number + 1)
    waiting.answers(60)
    told = waiting.advice()
    assert len(told) == 7 and sum("was asked about 5 other shapes" in one.note for one in told) == 2
    assert len(waiting.slurm.called("sbatch")) <= 5 * 8


def test_where_slurm_does_not_know_when_its_answers_are_taken_as_they_are(waiting):
    waiting.add("aaa", "7")
    waiting.answers(60, nodes__1=20)
    (told,) = waiting.advice()
    assert (told.expected, [one.start for one in told.suggestions]) == (at(60), [at(20)])


def test_a_shape_that_slurm_would_not_take_is_passed_over(waiting):
    waiting.add("aaa", "7", reason="PartitionTimeLimit")
    waiting.slurm.says("sbatch", code=1)
    waiting.answers("Requested time limit is invalid")
    (told,) = waiting.advice()
    assert told.suggestions == [] and "as it is Slurm would not take it: sbatch: allocation failure" in told.note
    assert told.remedy.startswith("it never starts as it is")


@pytest.mark.parametrize("reason", ["JobHeldUser", "Dependency", "BeginTime", "QOSMaxJobsPerUserLimit"])
def test_where_less_would_not_help_slurm_is_not_asked(waiting, reason):
    waiting.add("aaa", "7", reason=reason)
    (told,) = waiting.advice()
    assert told.note == "asking for less would not change that" and not waiting.slurm.called("sbatch")


def test_a_slurm_that_goes_away_and_a_script_that_is_gone_are_told(waiting):
    waiting.add("aaa", "7")
    waiting.slurm.says("sbatch", err=AWAY, code=1)
    assert "Unable to contact" in waiting.advice()[0].note
    waiting.sweep.script("t7").unlink()
    assert "is gone, what it asks for is not known" in waiting.advice()[0].note


def test_status_prints_it_in_words_and_as_json(waiting, capsys):
    waiting.add("aaa", "7", start=at(120))
    waiting.add("bbb", "8", reason="JobHeldUser")
    waiting.answers(150, nodes__1=30)
    show = {"watch": False, "as_json": False, "with_advice": True}
    show_status(waiting.sweep.path, waiting.slurm.env, **show)
    said = capsys.readouterr().out
    assert "1 node instead of 2: could start now" in said and "bbb waits for" in said and "scontrol release JOB" in said
    show_status(waiting.sweep.path, waiting.slurm.env, **show | {"as_json": True})
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["advice"]["suggestions"][0]["overrides"] == ["hydra.launcher.nodes=1"]
    assert (rows[1]["advice"]["reason"], rows[1]["advice"]["suggestions"]) == ("JobHeldUser", [])
    waiting.slurm.says("squeue", "7|RUNNING|None|N/A|0:00|n1|\n8|RUNNING|None|N/A|0:00|n1|\n")
    show_status(waiting.sweep.path, waiting.slurm.env, **show)
    assert capsys.readouterr().out.splitlines()[-1] == "no run waits"
    with pytest.raises(UserError, match="--advise: looks once"):
        show_status(waiting.sweep.path, waiting.slurm.env, **show | {"watch": True})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "has not looked at it yet"),
        ("Priority", "other jobs of this partition come first"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "a node that it needs is down"),
        ("ReqNodeNotAvail,_UnavailableNodes:n1", "a node that it needs is down"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved", "down, drained or reserved"),
        ("launch_failed_requeued_held", "its start failed, and it is held"),
        ("QOSMaxJobsPerUserLimit", "as many jobs run or wait as its user or account may have"),
        ("AssocMaxJobsLimit", "as many jobs run or wait as its user or account may have"),
        ("MaxSubmitJobsPerAccount", "as many jobs run or wait as its user or account may have"),
        ("AssocGrpCpuLimit", "all jobs of its account together"),
        ("QOSGrpNodeLimit", "all jobs of its quality of service together"),
        ("AssocMaxWallDurationPerJobLimit", "its time limit is longer"),
        ("QOSMaxCpuPerJobLimit", "more than one job may have"),
        ("QOSMaxGRESPerUser", "in its quality of service"),
        ("MaxGRESPerAccount", "would exceed what its user or account may have"),
        ("MaxMemPerLimit", "more memory"),
        ("SomethingNew", "Slurm says SomethingNew"),
    ],
)
def test_reasons_in_plain_words(code, words):
    reason = explained(code)
    assert words in reason.means and reason.remedy and "\n" not in reason.means + reason.remedy


COUNTS = st.integers(1, 64)


@given(nodes=COUNTS, tasks=COUNTS, gpus=st.integers(0, 16), cpus=COUNTS, minutes=st.integers(1, 10_000), batch=COUNTS)
def test_another_shape_asks_for_less_of_something_and_more_of_nothing(nodes, tasks, gpus, cpus, minutes, batch):
    asked = {"nodes": nodes, "ntasks-per-node": tasks, "gpus-per-node": gpus, "cpus-per-task": cpus, "time": minutes}
    shape = Shape({name: str(value) for name, value in asked.items()} | {"partition": "low"})
    for change in changes(shape, batch * nodes, ["high", "long", "other"], 7):
        numbers = {name: int(value) for name, value in change.values.items() if name != "partition"}
        assert all(1 <= value <= asked[name] for name, value in numbers.items())
        assert any(value < asked[name] for name, value in numbers.items()) or change.values["partition"] in (
            "high",
            "long",
        )
        ranks = numbers.get("nodes", nodes) * numbers.get("ntasks-per-node", tasks)
        assert ranks == nodes * tasks or batch * nodes % ranks == 0
    assert len(changes(shape, None, ["high"], 7)) <= 7


def test_fewer_gpus_take_their_ranks_along():
    shape = Shape({"nodes": "1", "ntasks-per-node": "8", "gpus-per-node": "8", "time": "600"})
    assert ["hydra.launcher.gpus_per_node=4", "hydra.launcher.tasks_per_node=4"] in [
        change.overrides for change in changes(shape, 16, [], 7)
    ]
    assert not any("gpus-per-node" in change.values for change in changes(shape, 6, [], 7)), "6 samples, 4 ranks"


def test_fewer_gpus_of_a_type_keep_it_for_slurm_and_leave_it_to_the_site():
    shape = Shape({"nodes": "1", "gpus-per-node": "a100:4", "time": "1"})
    assert "4 GPUs a node" in str(shape)
    (fewer,) = [change for change in changes(shape, None, [], 7) if "GPU" in change.what]
    assert fewer.options == ["--gpus-per-node=a100:2"] and fewer.overrides == ["hydra.launcher.gpus_per_node=2"]


def test_the_shape_of_a_script_leaves_out_what_names_one_submission(tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(SCRIPT.format(nodes=2))
    shape = Shape.of(script)
    assert {"array", "error", "job-name"}.isdisjoint(shape.options) and shape.options["requeue"] == ""
    assert (shape.number("nodes"), shape.number("mem"), str(shape)) == (
        2, 0, "2 nodes, 1 task a node, 40 min, partition low"
    )  # fmt: skip
    with pytest.raises(UserError, match="No such file"):
        Shape.of(tmp_path / "none.sh")
