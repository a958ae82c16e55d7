"""The world: what each launcher's environment says of this process, and contradictions in it."""

from __future__ import annotations

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.world import World, array_element, set_defaults, set_interface

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def test_a_run_that_a_local_queue_starts_again_has_its_number_and_another_meeting_place():
    queue = {"JOB_ID": "q1", "NTASKS": "2", "GLOBALID": "1", "LOCALID": "1"}
    env = {f"SUBMITIT_LOCAL_{name}": value for name, value in queue.items()}
    worlds = [
        World.from_env(env | more, "cpu") for more in ({}, *({"SEEMORE_LOCAL_RESTARTS": str(n)} for n in range(3)))
    ]
    assert [w.restarts for w in worlds] == [0, 0, 1, 2] and {w.job_id for w in worlds} == {"q1"}
    assert [w.incarnation for w in worlds] == ["q1", "q1", "q1.r1", "q1.r2"]
    inside = World.from_env(env | {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "4"}, "cpu")
    assert inside.restarts == 0, "the queue's own, not those of the job that it runs in"


def test_without_a_launcher_there_is_a_world_of_one():
    world = World.from_env({"HOME": "/root", "LOCAL_RANK": "7"}, "cpu")
    assert (world.rank, world.size, world.local_rank, world.device) == (0, 1, 0, "cpu")
    assert world.source == "single"
    assert world.is_main
    assert world.host == socket.gethostname()


def test_torchrun_is_read_from_its_three_variables():
    world = World.from_env(TORCHRUN, "cpu", micro_batch=8)
    assert (world.rank, world.size, world.local_rank, world.device) == (3, 4, 1, "cpu")
    assert (world.source, world.micro_batch) == ("torchrun", 8)
    assert not world.is_main


def test_a_gpu_is_chosen_by_the_local_rank():
    assert World.from_env({}, "cuda").device == "cuda:0"
    assert World.from_env(TORCHRUN, "cuda").device == "cuda:1"


@given(st.integers(1, 64), st.data())
def test_exactly_one_rank_is_main(size, data):
    rank = data.draw(st.integers(0, size - 1))
    world = World.from_env({"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}, "cpu")
    assert world.is_main == (rank == 0)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_a_missing_variable_is_named(missing):
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"^{missing} is not set"):
        World.from_env(env, "cpu")


@pytest.mark.parametrize("name", TORCHRUN)
@pytest.mark.parametrize("value", ["", "one", "1.5"])
def test_a_variable_that_is_no_whole_number_is_named_with_its_value(name, value):
    with pytest.raises(UserError, match="^" + re.escape(f"{name}={value!r}: should be a whole number")):
        World.from_env(TORCHRUN | {name: value}, "cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "4"}, "RANK=4: should be from 0 to WORLD_SIZE-1=3"),
        ({"RANK": "-1"}, "RANK=-1: should be from 0 to WORLD_SIZE-1=3"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0: should be from 0 to WORLD_SIZE-1=-1"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4: should be from 0 to WORLD_SIZE-1=3"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: should be from 0 to WORLD_SIZE-1=3"),
    ],
)
def test_variables_that_contradict_each_other_are_named(changes, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        World.from_env(TORCHRUN | changes, "cpu")


# Slurm, a local queue, torchrun, and one inside another

STEP = {
    "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
QUEUE = {
    "SUBMITIT_LOCAL_JOB_ID": "q9", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}  # fmt: skip
ELASTIC = TORCHRUN | {"TORCHELASTIC_RUN_ID": "e1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
ONE_TASK = STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
SHELL = ONE_TASK | {"SLURM_STEP_NUM_NODES": "1"}


@pytest.mark.parametrize(
    ("env", "source", "place", "job", "incarnation"),
    [
        (STEP, "slurm", (3, 4, 1, 1, 2), "17", "17.r0.s0"),
        (STEP | {"SLURM_RESTART_COUNT": "2", "SLURM_STEP_LAUNCHER_PORT": "4000"}, "slurm", (3, 4, 1, 1, 2), "17",
         "17.r2.s0.p4000"),
        (STEP | {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "5"}, "slurm", (3, 4, 1, 1, 2), "16_5",
         "16_5.r0.s0"),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NUM_TASKS"}, "slurm", (3, 4, 1, 1, 2), "17", "17.r0.s0"),
        (STEP | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "slurm", (3, 4, 1, 1, 2), "17", "17.r0.s0"),
        # a batch script, salloc's shell on the login node, salloc's interactive step: each is one process
        ({"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "single", (0, 1, 0, 0, 1), "17", None),
        (STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}, "single", (0, 1, 0, 0, 1), "17", None),
        (STEP | {"SLURM_STEP_ID": "4294967291"}, "single", (0, 1, 0, 0, 1), "17", None),
        (STEP | {"SLURM_STEP_ID": "batch"}, "single", (0, 1, 0, 0, 1), "17", None),
        ({}, "single", (0, 1, 0, 0, 1), None, None),
        (QUEUE, "submitit", (1, 2, 1, 0, 1), "q9", "q9"),
        (QUEUE | {"CUDA_VISIBLE_DEVICES": "3"}, "submitit", (1, 2, 1, 0, 1), "q9", "q9"),
        (QUEUE | SHELL, "submitit", (1, 2, 1, 0, 1), "q9", "q9"),
        (ELASTIC, "torchrun", (3, 4, 1, 1, 2), None, "e1.r0.p29500"),
        (ELASTIC | STEP | {"TORCHELASTIC_RESTART_COUNT": "1"}, "torchrun", (3, 4, 1, 1, 2), "17", "e1.r1.p29500"),
        (ELASTIC | {"GROUP_RANK": "2", "GROUP_WORLD_SIZE": "3"}, "torchrun", (3, 4, 1, 2, 3), None, "e1.r0.p29500"),
    ],
)  # fmt: skip
def test_each_launcher_is_read_and_the_innermost_wins(env, source, place, job, incarnation):
    world = World.from_env(env, "cpu")
    assert (world.rank, world.size, world.local_rank, world.node_rank, world.nodes) == place
    assert (world.source, world.job_id) == (source, job)
    assert incarnation is None or world.incarnation == incarnation
    assert world.restarts == int(env.get("SLURM_RESTART_COUNT", 0))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (STEP | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4: should be from 0 to SLURM_STEP_NUM_TASKS-1=3"),
        (STEP | {"SLURM_PROCID": "x"}, "SLURM_PROCID='x': should be a whole number"),
        (STEP | {"SLURM_LOCALID": "-1"}, "SLURM_LOCALID=-1: should be"),
        (STEP | {"SLURM_NODEID": "2"}, "SLURM_NODEID=2: should be from 0 to SLURM_STEP_NUM_NODES-1=1"),
        (STEP | {"SLURM_STEP_NUM_NODES": "5"}, "SLURM_STEP_NUM_NODES=5: should be from 1 to SLURM_STEP_NUM_TASKS=4"),
        (STEP | {"SLURM_RESTART_COUNT": "two"}, "SLURM_RESTART_COUNT='two': should be a whole number"),
        (STEP | {"RANK": "0", "WORLD_SIZE": "4"}, "RANK=0 contradicts SLURM_PROCID=3: unset RANK"),
        (STEP | {"WORLD_SIZE": "8"}, "WORLD_SIZE=8 contradicts the step's number of tasks=4"),
        (STEP | QUEUE, "SUBMITIT_LOCAL_JOB_ID=q9 contradicts a Slurm step of 4 tasks"),
        (QUEUE | {"RANK": "0"}, "RANK=0 contradicts SUBMITIT_LOCAL_GLOBALID=1"),
        (QUEUE | {"SUBMITIT_LOCAL_GLOBALID": "2"}, "SUBMITIT_LOCAL_GLOBALID=2: should be from 0 to"),
        (ELASTIC | {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5: should be from 1 to WORLD_SIZE=4"),
        (ELASTIC | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2: should be from 0 to LOCAL_WORLD_SIZE-1=1"),
        (ELASTIC | {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "2"}, "GROUP_RANK=2: should be from 0 to"),
    ],
)
def test_what_does_not_fit_together_is_told_with_its_values(env, said):
    with pytest.raises(UserError, match="^" + re.escape(said)):
        World.from_env(env, "cpu")


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_NODES"])
def test_a_step_without_one_of_its_variables_is_told(name):
    with pytest.raises(UserError, match=f"^{name} is not set, but SLURM_STEP_ID is: start it with srun"):
        World.from_env({k: v for k, v in STEP.items() if k != name}, "cpu")


@pytest.mark.parametrize("name", [name for name in QUEUE if name != "SUBMITIT_LOCAL_JOB_ID"])
def test_a_queue_without_one_of_its_variables_is_told(name):
    with pytest.raises(UserError, match=f"^{name} is not set, but SUBMITIT_LOCAL_JOB_ID is"):
        World.from_env({k: v for k, v in QUEUE.items() if k != name}, "cpu")


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.text(min_size=1, max_size=20))
def test_all_ranks_of_a_start_share_a_folder_name_that_no_other_start_has(nodes, tasks, restarts, job):
    def names(job, restarts):
        size = nodes * tasks
        return {
            World.from_env(
                STEP | {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restarts), "SLURM_PROCID": str(rank),
                        "SLURM_STEP_NUM_TASKS": str(size), "SLURM_LOCALID": str(rank % tasks),
                        "SLURM_NODEID": str(rank // tasks), "SLURM_STEP_NUM_NODES": str(nodes)},
                "cpu",
            ).incarnation
            for rank in range(size)
        }  # fmt: skip

    first, again, other = names(job, restarts), names(job, restarts + 1), names(job + "1", restarts)
    assert len(first) == len(again) == len(other) == 1 and len(first | again | other) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,120}", name) and name[0] not in ".-" for name in first | other)


def test_a_gpu_bound_to_its_task_is_its_first_and_one_too_few_is_told():
    assert World.from_env(TORCHRUN, "cuda", gpus=1).device == "cuda:0"
    assert World.from_env(TORCHRUN, "cuda", gpus=2).device == "cuda:1"
    with pytest.raises(UserError, match=r"^local rank 2: there is no GPU for it, 2 are visible"):
        World.from_env(TORCHRUN | {"LOCAL_RANK": "2"}, "cuda", gpus=2)


@pytest.mark.parametrize(("env", "fits"), [(STEP, (2, 2)), (QUEUE, (1, 2)), (TORCHRUN, (7, 7)), ({}, (2, 2))])
def test_a_jobs_size_is_held_against_the_plans(env, fits):
    world = World.from_env(env, "cpu")
    world.require_size(*fits)
    world.require_size(None, None)
    if world.source in ("slurm", "submitit"):
        for wrong in ((1, 1), (4, 2), (fits[0], 3)):
            with pytest.raises(UserError, match=rf"started {world.size} tasks .*hardware\.nodes={wrong[0]} x"):
                world.require_size(*wrong)


def test_a_variable_that_the_user_has_set_stays():
    env = {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "mine"}
    set_defaults(env, threads=2)
    set_interface(env, "ib0", None)
    assert (env["OMP_NUM_THREADS"], env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("7", "mine", "ib0")
    env = {}
    set_defaults(env, threads=2)
    set_interface(env, None, "eth0")
    assert (env["OMP_NUM_THREADS"], env["GLOO_SOCKET_IFNAME"]) == ("2", "eth0")
    assert "NCCL_SOCKET_IFNAME" not in env


def test_an_element_of_an_array_is_read():
    assert (array_element({}), array_element({"SLURM_ARRAY_TASK_ID": "12"})) == (None, 12)
    with pytest.raises(UserError, match="SLURM_ARRAY_TASK_ID='x'"):
        array_element({"SLURM_ARRAY_TASK_ID": "x"})


@pytest.mark.parametrize(
    ("text", "path"),
    [("$TMPDIR", "/tmp/job 7"), ("/scratch/$USER/${JOB}x", "/scratch/eva/7x"), ("/plain", "/plain")],
)
def test_a_folder_of_this_node_by_its_variables(text, path):
    world = World.from_env({"TMPDIR": "/tmp/job 7", "USER": "eva", "JOB": "7"}, "cpu")
    assert str(world.folder("data.stage", text)) == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$TMPDIR", "data.stage=$TMPDIR: TMPDIR is not set on n1; name another folder"),
        ("/a/${EMPTY}", "data.stage=/a/${EMPTY}: EMPTY is not set on n1"),
        ("$NAME", "data.stage=$NAME: is somewhere on n1; should begin with a slash"),
    ],
)
def test_a_folder_that_means_nothing_on_this_node_is_refused_in_one_line(text, said):
    world = World.from_env({"EMPTY": "", "NAME": "somewhere", "SLURMD_NODENAME": "n1"}, "cpu")
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        world.folder("data.stage", text)
    assert "\n" not in str(caught.value)
