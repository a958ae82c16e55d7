"""Which of hardware, site and ``hydra.launcher.*`` wins, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launcher.runtime.errors import UserError
from launcher.schema import SiteConfig
from launcher.submission.resources import resources_of
from tests.launcher.jobs import hardware


def of(queue: dict[str, Any], site: dict[str, Any] | None = None, **asked: Any):
    return resources_of(hardware(**asked), SiteConfig(**(site or {})), queue)


@pytest.mark.parametrize(
    ("key", "field"),
    [("nodes", "nodes"), ("tasks_per_node", "tasks_per_node"), ("gpus_per_node", "gpus_per_node"),
     ("cpus_per_task", "cpus_per_task"), ("mem_gb", "mem_gb"), ("timeout_min", "time_min")],
)  # fmt: skip
def test_the_launchers_key_is_stronger_than_hardwares(key, field):
    assert of({}, **{field: 3}).queue[key] == 3
    strong = of({key: 5}, **{field: 3})
    assert strong.queue[key] == 5 and getattr(strong.hardware, field) == 5
    assert of({key: None}, **{field: 3}).queue[key] == 3


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint"])
def test_the_launchers_key_is_stronger_than_the_sites(key):
    assert of({}, {key: "site"}).queue[key] == "site"
    assert of({key: "typed"}, {key: "site"}).queue[key] == "typed"
    assert key not in of({}).queue


def test_time_has_a_default_in_a_queue_and_none_here():
    assert of({}).minutes == of({}).hardware.time_min == 60
    assert resources_of(hardware(), SiteConfig(), {}, here=True).hardware.time_min is None
    assert resources_of(hardware(time_min=5), SiteConfig(), {}, here=True).hardware.time_min == 5


@pytest.mark.parametrize(
    ("queue", "asked", "gpus"),
    [
        ({}, {}, 0),
        ({"gpus_per_node": 2}, {"nodes": 3}, 6),
        ({"gpus_per_task": 2}, {"nodes": 2, "tasks_per_node": 3}, 12),
        ({"gres": "gpu"}, {"nodes": 2}, 2),
        ({"gres": "gpu:4"}, {}, 4),
        ({"gres": "gpu:a100:4,lustre:1"}, {"nodes": 2}, 8),
        ({"gres": "lustre:2"}, {}, 0),
        ({"gres": "gpu:1g.5gb:3"}, {}, 3),
    ],
)
def test_gpus_are_counted_and_settle_the_device(queue, asked, gpus):
    found = of(queue, device="auto", **asked)
    assert found.gpus == gpus and found.hardware.device == ("cuda" if gpus else "cpu")


@pytest.mark.parametrize(
    ("queue", "key", "typed", "gpus"),
    [
        ({"gpus_per_node": 4}, "gpus_per_node", "a100:4", 4),
        ({"gpus_per_node": 0}, "gpus_per_node", 0, 0),
        ({"gpus_per_task": 2}, "gpus_per_task", "a100:2", 2),
        ({"gres": "gpu"}, "gres", "gpu:a100", 1),
        ({"gres": "gpu:4,lustre:1"}, "gres", "gpu:a100:4,lustre:1", 4),
        ({"gres": "gpu:h100:2"}, "gres", "gpu:h100:2", 2),
        ({"gres": "lustre:2"}, "gres", "lustre:2", 0),
        ({"additional_parameters": {"gpus": 3, "nice": 2}}, "additional_parameters", {"gpus": "a100:3", "nice": 2}, 0),
    ],
)
def test_gpus_have_the_type_of_the_site_where_no_other_is_named(queue, key, typed, gpus):
    found = of(queue, {"gpu_type": "a100"}, device="auto")
    assert found.queue[key] == typed and found.gpus == gpus
    assert resources_of(hardware(), SiteConfig(gpu_type="a100"), queue, here=True).queue[key] == queue[key]


def test_shapes_are_equal_where_everything_asked_for_is():
    assert of({"nodes": 2}).key == of({}, nodes=2).key != of({"nodes": 3}).key
    assert of({}, {"setup": ["module load x"]}).key != of({}).key
    assert of({"comment": "a"}).key != of({"comment": "b"}).key
    assert dataclasses.replace(of({}), queue=of({}).queue).key == of({}).key


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ({"nodes": 0}, "hydra.launcher.nodes=0: should be at least 1"),
        ({"timeout_min": -1}, "hydra.launcher.timeout_min=-1"),
        ({"name": "a\nb"}, "hydra.launcher.name='a\\nb'"),
        ({"comment": "a\n#SBATCH --uid=0"}, "hydra.launcher.comment="),
        ({"partition": "a\x1b"}, "hydra.launcher.partition="),
        ({"setup": ["echo a\necho b"]}, "hydra.launcher.setup="),
        ({"setup": ["a\0b"]}, "hydra.launcher.setup="),
        ({"additional_parameters": {"mail-user": "a\nb"}}, "hydra.launcher.additional_parameters.mail-user="),
        ({"additional_parameters": {"mail\nuser": "a"}}, "is no option of sbatch"),
        ({"additional_parameters": {"x=1 --y": "a"}}, "is no option of sbatch"),
        ({"additional_parameters": {"$(touch x)": "a"}}, "is no option of sbatch"),
        ({"additional_parameters": {"": "a"}}, "is no option of sbatch"),
        ({"additional_parameters": {"array": "0-9"}}, "runs are gathered into arrays"),
        ({"additional_parameters": {"arr": "0-9"}}, "runs are gathered into arrays"),
        ({"additional_parameters": {"job_name": "x"}}, "use hydra.launcher.name"),
        ({"additional_parameters": {"wrap": "x"}}, "the command is the launcher's"),
    ],
)
def test_what_would_break_a_script_is_refused(queue, words):
    with pytest.raises(UserError) as caught:
        of(queue)
    assert words in str(caught.value)


def test_a_gpu_without_gpus_is_refused():
    with pytest.raises(UserError, match=r"hardware\.device=cuda: no GPU is asked for"):
        of({}, device="cuda")
