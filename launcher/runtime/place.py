"""Which launcher started this process, and where it put it: torchrun, a local queue, a step of srun, or none."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

from launcher.runtime.errors import UserError

_NAMED_STEPS = 0xFFFFFFFA
"""From here on a step's number stands for a name: the interactive, batch and extern step (slurm.h)."""

LOCAL_RESTARTS = "SEEMORE_LOCAL_RESTARTS"
"""How often the local queue has started this run again: what SLURM_RESTART_COUNT is in a job of Slurm's."""


def in_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process, or what started it."""
    step = env.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _NAMED_STEPS


def place(env: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a world that say where this process stands.

    Raises:
        UserError: a variable is missing, no number, or contradicts another.
    """
    if "TORCHELASTIC_RUN_ID" in env:
        return _of_torchrun(env)
    step = _of_slurm(env) if in_slurm_step(env) else None
    if "SUBMITIT_LOCAL_JOB_ID" in env:
        queue = _of_submitit(env)
        if step and step["size"] > 1:  # a queue inside a shell that srun started is fine: a step of one task
            raise UserError(
                f"SUBMITIT_LOCAL_JOB_ID={env['SUBMITIT_LOCAL_JOB_ID']} contradicts a Slurm step of {step['size']} "
                "tasks: unset the SUBMITIT_LOCAL_ variables, or start the queue outside of the step"
            )
        return _agreeing(env, queue, "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID")
    if step:
        return _agreeing(env, step, "SLURM_PROCID", "the step's number of tasks", "SLURM_LOCALID")
    if "RANK" in env or "WORLD_SIZE" in env:
        return _of_torchrun(env)
    return {"local_rank": 0, "source": "single", "incarnation": _folder_name(f"{socket.gethostname()}.{os.getpid()}")}


def _of_torchrun(env: Mapping[str, str]) -> dict[str, Any]:
    """torchrun's variables ("Environment Variables" in the docs of torch.distributed.run), or such set by hand."""
    why = "RANK, WORLD_SIZE and LOCAL_RANK go together: set all three or none"
    size = number(env, "WORLD_SIZE", why)
    rank = _below(env, "RANK", size, "WORLD_SIZE", why)
    local_rank = _below(env, "LOCAL_RANK", size, "WORLD_SIZE", why)
    nodes, node_rank = 1, 0
    if "LOCAL_WORLD_SIZE" in env:
        local_size = number(env, "LOCAL_WORLD_SIZE")
        if not 1 <= local_size <= size:
            raise UserError(f"LOCAL_WORLD_SIZE={local_size}: should be from 1 to WORLD_SIZE={size}")
        local_rank = _below(env, "LOCAL_RANK", local_size, "LOCAL_WORLD_SIZE", why)
        nodes, node_rank = -(-size // local_size), rank // local_size
    if "GROUP_WORLD_SIZE" in env:
        nodes = number(env, "GROUP_WORLD_SIZE")
        node_rank = _below(env, "GROUP_RANK", nodes, "GROUP_WORLD_SIZE", "GROUP_WORLD_SIZE is")
    name, again = env.get("TORCHELASTIC_RUN_ID", "env"), env.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {
        "rank": rank,
        "size": size,
        "local_rank": local_rank,
        "nodes": nodes,
        "node_rank": node_rank,
        "source": "torchrun",
        "incarnation": _folder_name(f"{name}.r{again}.p{env.get('MASTER_PORT', '')}"),
    }


def _of_slurm(env: Mapping[str, str]) -> dict[str, Any]:
    """What srun tells a task (srun(1), "Output environment variables")."""
    why = "SLURM_STEP_ID is: start it with srun, or unset SLURM_STEP_ID"
    sizes = _first(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    of_nodes = _first(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    size, nodes = number(env, sizes, why), number(env, of_nodes, why)
    if not 1 <= nodes <= size:
        raise UserError(f"{of_nodes}={nodes}: should be from 1 to {sizes}={size}; start it with srun")
    again, step = env.get("SLURM_RESTART_COUNT", "0"), env["SLURM_STEP_ID"]
    # Job numbers begin anew with a new cluster; the port on which srun listens tells its jobs from the old ones.
    port = env.get("SLURM_STEP_LAUNCHER_PORT")
    return {
        "rank": _below(env, "SLURM_PROCID", size, sizes, why),
        "size": size,
        "local_rank": _below(env, "SLURM_LOCALID", size, sizes, why),
        "nodes": nodes,
        "node_rank": _below(env, "SLURM_NODEID", nodes, of_nodes, why),
        "source": "slurm",
        "incarnation": _folder_name(f"{job_id(env)}.r{again}.s{step}" + (f".p{port}" if port else "")),
    }


def _of_submitit(env: Mapping[str, str]) -> dict[str, Any]:
    """What submitit's local executor tells a task (submitit/local/local.py); a queue's tasks stand on one machine."""
    why = "SUBMITIT_LOCAL_JOB_ID is: set all four SUBMITIT_LOCAL_ variables or none"
    size = number(env, "SUBMITIT_LOCAL_NTASKS", why)
    restarts = number(env, LOCAL_RESTARTS) if LOCAL_RESTARTS in env else 0
    return {
        "rank": _below(env, "SUBMITIT_LOCAL_GLOBALID", size, "SUBMITIT_LOCAL_NTASKS", why),
        "size": size,
        "local_rank": _below(env, "SUBMITIT_LOCAL_LOCALID", size, "SUBMITIT_LOCAL_NTASKS", why),
        "source": "submitit",
        "job_id": env["SUBMITIT_LOCAL_JOB_ID"],
        "restarts": restarts,
        "incarnation": _folder_name(env["SUBMITIT_LOCAL_JOB_ID"] + (f".r{restarts}" if restarts else "")),
    }


def _agreeing(env: Mapping[str, str], place: dict[str, Any], rank: str, size: str, local_rank: str) -> dict[str, Any]:
    """``place``, if torchrun's variables, where somebody has set them, say the same."""
    same = (("RANK", "rank", rank), ("WORLD_SIZE", "size", size), ("LOCAL_RANK", "local_rank", local_rank))
    for name, field, theirs in same:
        if name in env and env[name] != str(place[field]):
            raise UserError(
                f"{name}={env[name]} contradicts {theirs}={place[field]}: unset RANK, WORLD_SIZE and LOCAL_RANK, "
                "or start it with torchrun"
            )
    return place


def job_id(env: Mapping[str, str]) -> str | None:
    """``<array id>_<element>`` of an element of a Slurm array, else SLURM_JOB_ID, or None outside of a job."""
    if "SLURM_JOB_ID" in env and "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"  # SLURM_JOB_ID is one of its own
    return env.get("SLURM_JOB_ID")


def _folder_name(text: str) -> str:
    """``text`` as the name of a folder: what is odd in it is replaced, and told apart by a hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text)[:80].lstrip(".-")
    return plain if plain == text else f"{plain}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _first(env: Mapping[str, str], *names: str) -> str:
    return next((name for name in names if name in env), names[0])


def _below(env: Mapping[str, str], name: str, size: int, size_name: str, why: str) -> int:
    value = number(env, name, why)
    if not 0 <= value < size:
        raise UserError(f"{name}={value}: should be from 0 to {size_name}-1={size - 1}")
    return value


def number(env: Mapping[str, str], name: str, why: str = "it should be") -> int:
    """The whole number in the variable ``name``; ``why`` it has to be there.

    Raises:
        UserError: it is not set, or no whole number.
    """
    if name not in env:
        raise UserError(f"{name} is not set, but {why}")
    value = env[name]
    if not re.fullmatch(r"-?[0-9]+", value):
        raise UserError(f"{name}={value!r}: should be a whole number")
    return int(value)
