"""The device: what a machine computes with, told from /proc/cpuinfo and nvidia-smi."""

from __future__ import annotations

import pytest

from launcher.runtime.device import cpu_has_bf16, has_bf16, resolve_device


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """``nvidia_smi("9.0\\n", rc=0)``: a machine whose nvidia-smi answers so; before the call there is none."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def answers(text: str, rc: int = 0) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {rc}\n")
        script.chmod(0o755)

    return answers


@pytest.mark.parametrize("wanted", ["cpu", "cuda"])
def test_a_named_device_is_taken_at_its_word(wanted, nvidia_smi):
    assert resolve_device(wanted) == wanted


def test_auto_is_the_cpu_where_there_is_no_driver(nvidia_smi):
    assert resolve_device("auto") == "cpu"
    assert not has_bf16("cuda")


def test_auto_is_the_gpu_where_there_is_one(nvidia_smi):
    nvidia_smi(r"9.0\n")
    assert resolve_device("auto") == "cuda"


@pytest.mark.parametrize("rc", [0, 9])
def test_a_driver_without_a_gpu_or_out_of_order_means_the_cpu(nvidia_smi, rc):
    nvidia_smi("" if rc == 0 else "NVIDIA-SMI has failed", rc)
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize(
    ("capabilities", "bf16"), [(r"8.0\n", True), (r"7.5\n", False), (r"10.0\n9.0\n", True), (r"9.0\n7.5\n", False)]
)
def test_gpus_have_bf16_from_ampere_on_and_only_if_all_of_them_do(nvidia_smi, capabilities, bf16):
    nvidia_smi(capabilities)
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
