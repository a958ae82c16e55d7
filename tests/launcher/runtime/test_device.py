"""The device: what a machine computes with, told from /proc/cpuinfo, the driver and torch."""

from __future__ import annotations

import pytest
import torch

from launcher.runtime.device import cpu_has_bf16, has_bf16, resolve_device


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """``gpus((9, 0))``: a machine with a driver and such GPUs; before the call it has no driver."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def there(*capabilities: tuple[int, int]) -> None:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])

    return there


@pytest.mark.parametrize("wanted", ["cpu", "cuda"])
def test_a_named_device_is_taken_at_its_word(wanted, gpus):
    assert resolve_device(wanted) == wanted


def test_auto_is_the_cpu_where_there_is_no_driver(gpus):
    assert resolve_device("auto") == "cpu"
    assert not has_bf16("cuda")


def test_auto_is_the_gpu_where_torch_can_use_one(gpus):
    gpus((9, 0))
    assert resolve_device("auto") == "cuda"


def test_a_driver_without_a_gpu_that_torch_can_use_means_the_cpu(gpus):
    gpus()
    assert resolve_device("auto") == "cpu"
    assert not has_bf16("cuda")


@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [([(8, 0)], True), ([(7, 5)], False), ([(10, 0), (9, 0)], True), ([(9, 0), (7, 5)], False)],
)
def test_gpus_have_bf16_from_ampere_on_and_only_if_all_of_them_do(gpus, capabilities, bf16):
    gpus(*capabilities)
    assert has_bf16("cuda") is bf16


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name\t: bf16 machine\nflags\t: fpu\n", False),
        ("flags : fpu my_avx512_bf16_not\n", False),
        ("", False),
    ],
)
def test_a_cpu_has_bf16_where_its_flags_list_such_an_instruction(cpuinfo, bf16):
    assert cpu_has_bf16(cpuinfo) is bf16
