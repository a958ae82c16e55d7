"""The queue of processes on this machine, with real processes that do as they are told instead of training."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.runtime.errors import ExitCode, RunsNotDone, UserError
from launcher.runtime.sweepdir import SweepDir
from launcher.submission import local_queue
from launcher.submission.commit import Wanted, run_here
from launcher.submission.jobs import Job
from launcher.submission.local_queue import run_all
from launcher.submission.reconcile import Rule
from launcher.submission.submit import claim_folders
from tests.conftest import REPOSITORY
from tests.launcher.jobs import job, no_code
from tests.launcher.runtime.ranks import toy_plan

# Stands for the interpreter: is called as ``python -uP -m launcher.runtime.worker PLANS --element N``. What it does is
# said by the plan: a word for each rank. It reports to the pipe ``ready`` once its handler stands.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
plans, _, element = sys.argv[-3:]
assert sys.argv[1:4] == ["-uP", "-m", "launcher.runtime.worker"], sys.argv
plan = json.loads(Path(plans).read_text().splitlines()[int(element)])
rank = int(os.environ["SUBMITIT_LOCAL_GLOBALID"])
do = plan["science"]["do"][rank]
run = Path(plan["root"]) / plan["name"] / plan["run_id"]
names = ("SUBMITIT_EXECUTOR", "SUBMITIT_LOCAL_JOB_ID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID",
         "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH")
with (run / f"starts.{rank}").open("a") as starts:
    print(json.dumps([os.environ["SUBMITIT_LOCAL_JOB_ID"], os.environ["SEEMORE_LOCAL_RESTARTS"]]), file=starts)
if do.endswith("-twice"):
    do = do.removesuffix("-twice") if os.environ["SEEMORE_LOCAL_RESTARTS"] in ("0", "1") else "ok"
(run / f"seen.{rank}").write_text(json.dumps({name: os.environ.get(name) for name in names} | {"pid": os.getpid()}))
stopped = []
def status(state, reason=""):
    aside = run / f"status.{rank}"
    aside.write_text(json.dumps({"state": state, "reason": reason, "heartbeat": time.time()}))
    aside.replace(run / "status.json")
def on_signal(number, frame):
    if do == "kill-on-stop":
        os.kill(os.getpid(), signal.SIGKILL)
    status("PREEMPTED", "stopped on request")
    sys.exit(75)
def report():
    with (Path(plan["root"]) / "ready").open("w") as ready:
        ready.write(".")
signal.signal(signal.SIGTERM, on_signal if do != "deaf" else lambda number, frame: report())
print("out"); print("err", file=sys.stderr)
root = Path(plan["root"])
if do in ("wait", "deaf", "early", "kill-on-stop"):
    if do == "early":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        status("RUNNING")
    report()
    while True:
        signal.pause()
if do == "meet":  # until the other one is there too
    (root / f"{plan['run_id']}.here").touch()
    while len(list(root.glob("*.here"))) < 2:
        time.sleep(0.01)
if do == "kill":
    status("RUNNING")
    os.kill(os.getpid(), signal.SIGKILL)
if do == "stop-second":  # once the other one stands
    while not (run / "status.json").exists():
        time.sleep(0.01)
    sys.exit(75)
if do.startswith("code"):
    sys.exit(int(do[4:]))
if do == "fail":
    status("FAILED", "it went wrong")
    sys.exit(1)
if rank == 0:
    status("COMPLETED")
    (run / "summary.json").write_text(json.dumps({"best_val_loss": 0.5}))
"""


class Queue:
    """A sweep of such runs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my runs"
        self.root.mkdir()
        self.sweep = SweepDir(self.root / "sweep")
        self.worker = folder / "worker.py"
        self.worker.write_text(WORKER)
        os.mkfifo(self.root / "ready")
        self._ready = os.open(self.root / "ready", os.O_RDWR)  # for writing too: no writer ever waits for us

    def job(self, number: int, *do: str, **asked: Any) -> Job:
        """Run ``number``, whose ranks do these things."""
        site = {"python": f"{sys.executable} -IS '{self.worker}'"}
        queue = asked.pop("queue", {})
        made = job(self.root, number, queue, here=True, site=site, tasks_per_node=len(do), **asked)
        made.plan.science["do"] = list(do)
        made.plan.execution["requeue"] = {"max_without_progress": 1}  # no second start
        return made

    def run(self, *jobs: Job, parallel: int | None = None, **env: str) -> dict[str, float]:
        claim_folders(jobs)
        self.sweep.job_logs.mkdir(exist_ok=True)
        snapshot = no_code(self.sweep.path, self.root)
        return run_all(self.sweep, jobs, snapshot, parallel, os.environ | env, self.sweep.job_logs)

    def again(self, *jobs: Job, rule: Rule | None = None) -> dict[str, float]:
        """As a command does: only what is left to be done is run."""
        snapshot = no_code(self.sweep.path, self.root)
        wanted = Wanted(self.sweep, jobs, snapshot, self.sweep.job_logs, self.root, rule or Rule())
        return run_here(wanted, None, os.environ)

    def start(self, *jobs: Job, parallel: int) -> int:
        """The same in a process group of its own, as a shell does it; returns its id when all of them run."""
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                self.run(*jobs, parallel=parallel)
                code = 0
            except UserError as error:
                code = error.code
            except KeyboardInterrupt:
                code = 76
            finally:
                os._exit(code)
        self.wait_ready(min(parallel, len(jobs)))
        return pid

    def wait_ready(self, count: int) -> None:
        """Until ``count`` more ranks have reported."""
        while count:
            count -= len(os.read(self._ready, count))

    def state(self, one: Job) -> tuple[str | None, str]:
        status = one.plan.rundir.read(one.plan.rundir.status) or {}
        return status.get("state"), status.get("reason", "")

    def seen(self, one: Job, rank: int = 0) -> dict[str, Any]:
        return json.loads((one.plan.rundir.path / f"seen.{rank}").read_text())


@pytest.fixture
def queue(tmp_path: Path, own_signals: None) -> Queue:
    return Queue(tmp_path)


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_runs_end_with_their_metrics_and_done_ones_are_not_run_again(queue, capfd):
    jobs = [queue.job(number, "ok") for number in range(3)]
    assert queue.run(*jobs) == dict.fromkeys((j.plan.run_id for j in jobs), 0.5)
    assert [queue.state(j)[0] for j in jobs] == ["COMPLETED"] * 3
    (jobs[0].plan.rundir.path / "seen.0").unlink()
    queue.again(*jobs)
    assert capfd.readouterr().out.count("COMPLETED already") == 3
    assert not (jobs[0].plan.rundir.path / "seen.0").exists()
    logs = sorted(p.name.rpartition("_0_log")[2] for p in queue.sweep.job_logs.iterdir())
    assert logs == [".err"] * 3 + [".out"] * 3


def test_the_same_command_again_goes_on_with_what_is_left(queue, capfd):
    done, failed, stopped, held, new = (queue.job(number, "ok") for number in range(5))
    claim_folders([done, failed, stopped, held])
    for one, state in ((done, "COMPLETED"), (failed, "FAILED"), (stopped, "PREEMPTED"), (held, "RUNNING")):
        one.plan.rundir.write_status(state=state, reason="bad luck" if one is failed else "", heartbeat=0)
    with held.plan.rundir.lock(), pytest.raises(RunsNotDone, match=r"1 of 5 runs FAILED before.*bad luck") as caught:
        queue.again(done, failed, stopped, held, new)
    assert caught.value.code == ExitCode.USER_ERROR
    assert [queue.state(one)[0] for one in (done, failed, stopped, held, new)] == [
        "COMPLETED", "FAILED", "COMPLETED", "RUNNING", "COMPLETED"
    ]  # fmt: skip
    said = capfd.readouterr().err
    assert "1 FAILED: are left as they are" in said and said.index("1 FAILED") < said.index("started")
    assert queue.again(failed, held, rule=Rule(failed=True)) == {failed.plan.run_id: 0.5, held.plan.run_id: 0.5}
    assert not any((done.plan.rundir.path).glob("seen.*"))


def test_two_runs_at_a_time(queue):
    jobs = [queue.job(0, "meet"), queue.job(1, "meet")]  # each waits until the other is there
    queue.run(*jobs, parallel=2)
    assert [queue.state(one)[0] for one in jobs] == ["COMPLETED", "COMPLETED"]


def test_ranks_are_told_their_places(queue):
    one = queue.job(0, "ok", "ok", "ok")
    queue.run(one, RANK="")
    seen = [queue.seen(one, rank) for rank in range(3)]
    assert [s["SUBMITIT_LOCAL_LOCALID"] for s in seen] == ["0", "1", "2"]
    assert {s["SUBMITIT_LOCAL_NTASKS"] for s in seen} == {"3"} and {s["SUBMITIT_EXECUTOR"] for s in seen} == {"local"}
    assert len({s["SUBMITIT_LOCAL_JOB_ID"] for s in seen}) == 1
    assert seen[0]["PYTHONPATH"].startswith(str(queue.sweep.code))


def test_a_rank_that_fails_ends_its_siblings_and_the_run_is_failed(queue, monkeypatch):
    monkeypatch.setattr(local_queue, "_LINGER_S", 0.0)
    bad, good = queue.job(0, "deaf", "code3"), queue.job(1, "ok")
    with pytest.raises(RunsNotDone, match=r"1 of 2 runs failed.*rank 1: code 3") as caught:
        queue.run(bad, good, parallel=1)
    assert caught.value.code == ExitCode.TRAINING_FAILED
    assert queue.state(bad) == ("FAILED", "rank 0 ended by SIGKILL, rank 1: code 3")
    assert queue.state(good)[0] == "COMPLETED"


@pytest.mark.parametrize(
    ("do", "state", "reason"),
    [
        ("fail", "FAILED", "it went wrong"),
        ("kill", "FAILED", "1 attempt made no progress (last: a rank was killed (SIGKILL)); see logs"),
        ("code1", "FAILED", "rank 0: code 1"),
        ("code3", "FAILED", "rank 0: code 3"),
        ("code70", "FAILED", "1 attempt made no progress (last: exit code 70); see logs"),
        ("code76", "FAILED", "1 attempt made no progress (last: asked to stop); see logs"),
        ("code75", "PREEMPTED", "stopped on request"),
    ],
)
@pytest.mark.parametrize("before", [None, "PREEMPTED", "FAILED"])
def test_what_became_of_it_is_told_whatever_an_earlier_attempt_said(queue, do, state, reason, before):
    one = queue.job(0, do)
    if before:
        one.plan.rundir.path.mkdir(parents=True)
        one.plan.rundir.write_status(state=before, reason="long ago", heartbeat=1.0, step=7)
    with pytest.raises(RunsNotDone) as caught:
        queue.run(one)
    assert queue.state(one) == (state, reason if before or do != "code75" else "stopped before its first step")
    assert caught.value.code == {"fail": 1, "code1": 1, "code75": 75}.get(do, 3)


def test_the_worst_of_those_that_failed_is_the_commands_end(queue):
    jobs = [queue.job(0, "code75"), queue.job(1, "code1"), queue.job(2, "ok")]
    with pytest.raises(RunsNotDone, match="1 of 3 runs failed") as caught:
        queue.run(*jobs)
    assert caught.value.code == 1


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_a_stop_reaches_every_run_and_leaves_each_resumable(queue, how):
    jobs = [queue.job(0, "wait"), queue.job(1, "early"), queue.job(2, "wait")]
    pid = queue.start(*jobs, parallel=2)
    if how == "Ctrl-C":
        os.killpg(pid, signal.SIGINT)  # as a terminal does
    else:
        os.kill(pid, signal.Signals[how])
    assert end_of(pid) == 75
    assert [queue.state(j) for j in jobs] == [
        ("PREEMPTED", "stopped on request"), ("PREEMPTED", "stopped before its first step"), (None, "")
    ]  # fmt: skip
    again = [queue.job(number, "ok") for number in range(3)]
    for one in again:
        one.plan.rundir.plan.unlink()
    queue.run(*again)
    assert [queue.state(j)[0] for j in again] == ["COMPLETED"] * 3


def test_runs_go_on_when_nobody_reads_what_the_queue_says(queue, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        queue.run(queue.job(0, "ok"), queue.job(1, "ok"))
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            closed.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_a_second_ctrl_c_kills_what_does_not_stop(queue):
    one = queue.job(0, "deaf", "deaf")
    pid = queue.start(one, parallel=1)
    queue.wait_ready(1)  # both stand
    os.killpg(pid, signal.SIGINT)
    queue.wait_ready(2)  # both were asked
    os.killpg(pid, signal.SIGINT)
    assert end_of(pid) == 76
    for rank in range(2):
        assert has_ended(queue.seen(one, rank)["pid"])


def has_ended(pid: int) -> bool:
    """Whether it ends within ten seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


def test_gpus_are_handed_out_in_disjoint_sets(queue):
    jobs = [queue.job(number, "meet", "ok", device="cuda", gpus_per_node=2) for number in range(2)]
    queue.run(*jobs, CUDA_VISIBLE_DEVICES="3,1,GPU-a,0")
    sets = [queue.seen(j)["CUDA_VISIBLE_DEVICES"].split(",") for j in jobs]
    assert sorted(sets[0] + sets[1]) == ["0", "1", "3", "GPU-a"] and len(sets[0]) == 2


def test_a_run_waits_until_its_gpus_are_free(queue):
    jobs = [queue.job(number, "ok", device="cuda", gpus_per_node=gpus) for number, gpus in enumerate((2, 1, 2))]
    queue.run(*jobs, CUDA_VISIBLE_DEVICES="0,1")
    assert [len(queue.seen(j)["CUDA_VISIBLE_DEVICES"].split(",")) for j in jobs] == [2, 1, 2]


def test_gpus_asked_for_by_a_run_on_the_cpu_are_not_waited_for(queue):
    one = queue.job(0, "ok", device="cpu", gpus_per_node=2)
    queue.run(one, CUDA_VISIBLE_DEVICES="")
    assert queue.state(one)[0] == "COMPLETED"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"device": "cuda", "gpus_per_node": 3}, "hardware.gpus_per_node=3: this machine shows 2 GPUs"),
        ({"nodes": 2}, "hardware.nodes=2: this machine is one node"),
    ],
)
def test_what_this_machine_has_not_is_refused_before_anything_runs(queue, asked, words):
    good = queue.job(0, "ok")
    with pytest.raises(UserError, match=words):
        queue.run(good, queue.job(1, "ok", **asked), CUDA_VISIBLE_DEVICES="0,1")
    assert not (good.plan.rundir.path / "seen.0").exists()


def events(one: Job, kind: str) -> list[dict[str, Any]]:
    return [event for event in one.plan.rundir.attempt_events() if event["event"] == kind]


@pytest.mark.parametrize("times", [0, 2])
def test_a_run_that_is_out_of_time_is_stopped_and_started_again_as_often_as_it_may(queue, times):
    one = queue.job(0, "wait", time_min=1)
    one.plan.execution["requeue"] = {"max_timeouts": times}
    object.__setattr__(one.resources.hardware, "time_min", 1e-9)
    with pytest.raises(RunsNotDone) as caught:
        queue.run(one)
    assert caught.value.code == 75
    assert queue.state(one)[0] == "PREEMPTED"
    assert [event["reason"] for event in events(one, "requeue")] == ["out of time"] * times


@pytest.mark.parametrize(("how", "cause"), [("kill", "a rank was killed (SIGKILL)"), ("code70", "exit code 70")])
def test_a_run_that_broke_down_is_started_again_under_the_same_name(queue, how, cause):
    one, other = queue.job(0, f"{how}-twice", "ok"), queue.job(1, "ok")
    one.plan.execution["requeue"] = {"max_without_progress": 3}
    queue.run(one, other, parallel=1)
    assert queue.state(one)[0] == queue.state(other)[0] == "COMPLETED"
    assert [event["reason"] for event in events(one, "requeue")] == [f"broke down: {cause}"] * 2
    starts = [json.loads(line) for line in (one.plan.rundir.path / "starts.0").read_text().splitlines()]
    assert [again for _, again in starts] == ["0", "1", "2"] and len({job for job, _ in starts}) == 1
    assert {event["job_id"] for event in events(one, "requeue")} == {starts[0][0]}


def test_ranks_that_outlive_one_that_has_stopped_are_ended(queue, monkeypatch):
    monkeypatch.setattr(local_queue, "_LINGER_S", 0.0)
    one = queue.job(0, "stop-second", "deaf")
    with pytest.raises(RunsNotDone) as caught:
        queue.run(one)
    assert caught.value.code == 75
    assert has_ended(queue.seen(one, 1)["pid"])


def test_a_stop_is_never_followed_by_a_start(queue):
    one = queue.job(0, "wait", "kill-on-stop")
    one.plan.execution["requeue"] = {}
    pid = queue.start(one, parallel=1)
    queue.wait_ready(1)
    os.kill(pid, signal.SIGINT)
    assert end_of(pid) == 75
    assert events(one, "requeue") == []


def test_a_run_that_does_not_stop_in_time_is_killed(queue, monkeypatch):
    monkeypatch.setattr(local_queue, "_GRACE_S", 0.0)
    one = queue.job(0, "ok", time_min=1)
    one.plan.science["do"] = ["deaf"]
    object.__setattr__(one.resources.hardware, "time_min", 1e-9)
    monkeypatch.setattr(local_queue._Running, "signal", _only_kill(local_queue._Running.signal))
    with pytest.raises(RunsNotDone):
        queue.run(one)
    assert queue.state(one) == ("FAILED", "1 attempt made no progress (last: out of time); see logs")


def _only_kill(send: Any) -> Any:
    """SIGTERM is lost on its way, and SIGKILL waits until the rank stands."""

    def lossy(self: Any, number: signal.Signals) -> None:
        status = self.job.plan.rundir.status
        if number == signal.SIGKILL and status.exists():
            send(self, number)

    return lossy


def test_a_run_that_another_command_trains_keeps_its_state(queue):
    one = queue.job(0, "code1")
    one.plan.rundir.path.mkdir(parents=True)
    one.plan.rundir.write_status(state="RUNNING", heartbeat=1.0)
    with one.plan.rundir.lock(), pytest.raises(RunsNotDone):
        queue.run(one)
    assert queue.state(one)[0] == "RUNNING"


def test_what_ranks_print_can_be_joined(queue):
    queue.run(queue.job(0, "ok", queue={"stderr_to_stdout": True}))
    (log,) = queue.sweep.job_logs.iterdir()
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_a_python_that_is_not_there_is_named(queue):
    one = queue.job(0, "ok")
    object.__setattr__(one.resources.site, "python", "/no/such/python -x")
    with pytest.raises(UserError, match=r"site\.python=/no/such/python -x: No such file"):
        queue.run(one)


def test_a_rank_that_is_killed_has_its_run_go_on_from_the_last_checkpoint(tmp_path, own_signals):
    """Real ranks that train, one of which is killed in its third step; as often as it may be tried."""
    plan = toy_plan(tmp_path, end="kill")
    plan.execution["requeue"] = {"max_attempts": 2}
    asked = job(tmp_path, 0, here=True, tasks_per_node=2, cpus_per_task=1).resources
    sweep = SweepDir(plan.rundir.path.parent)
    one = Job(plan, asked, ())
    claim_folders([one])
    sweep.job_logs.mkdir()
    code = f"{REPOSITORY}{os.pathsep}{REPOSITORY}/launcher/plugin"
    with pytest.raises(RunsNotDone) as caught:
        run_all(sweep, [one], no_code(sweep.path, tmp_path), 1, os.environ | {"PYTHONPATH": code}, sweep.job_logs)
    assert caught.value.code == ExitCode.TRAINING_FAILED
    first, second = events(one, "start")
    assert second["incarnation"] == f"{first['incarnation']}.r1" and second["job_id"] == first["job_id"]
    assert [event["reason"] for event in events(one, "requeue")] == [
        "broke down: a rank was killed, or its node was lost"
    ]
    state, reason = plan.rundir.state(), (plan.rundir.read(plan.rundir.status) or {})["reason"]
    assert state == "FAILED" and reason.startswith("requeue.max_attempts=2 attempts are used up (last: ")
