"""What tests share: configs composed from conf/, small data files, and the command line as a user types it."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from launcher.compose import plain
from launcher.runtime.sections import parse
from launcher.runtime.task_config import Facts
from vlm.config import TrainConfig

REPOSITORY = Path(__file__).parent.parent
PHOTOS = Path(__file__).parent / "data" / "photos.csv"

# A model and a run small enough for a test: about a second.
SMALL = (
    "model.n_embd=16", "model.n_head=2", "model.n_layer=1", "model.n_blocks=1", "model.image_embed_dim=16",
    "model.img_size=16", "model.patch_size=8", "model.positions=128", "data.count=40", "data.px=16",
    "trainer.batch_size=4", "trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1", "trainer.captions=2",
    "schedule.warmup_steps=0",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-slurm", action="store_true", help="fail, do not skip, where Slurm is not installed")
    parser.addoption("--require-browser", action="store_true", help="fail, do not skip, where there is no Chromium")
    parser.addoption("--seeds", type=int, default=30, help="how often each test of the storm is made")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``storm_seed``: a number for each time that ``--seeds`` asks for."""
    if "storm_seed" in metafunc.fixturenames:
        metafunc.parametrize("storm_seed", range(metafunc.config.getoption("seeds")))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say loudly that nothing was tried on a real Slurm, or in a browser; and what the storm has cost."""
    passed = terminalreporter.stats.get("passed", [])
    storms = [value for report in passed for name, value in report.user_properties if name == "storm"]
    if storms:
        kills, redone = sum(storm["kills"] for storm in storms), max(storm["redone"] for storm in storms)
        terminalreporter.line(
            f"storm: {len(storms)} runs of which {kills} ranks were killed ended like the one that was left alone; "
            f"at most {redone} steps done again"
        )
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "tests/integration" in str(r.longrepr)]
    if skipped:
        terminalreporter.section("NO SLURM ON THIS MACHINE", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests on a real cluster were SKIPPED: {skipped[0].longrepr[2]}")
    unseen = [r for r in terminalreporter.stats.get("skipped", []) if "browser" in r.keywords]
    if unseen:
        terminalreporter.section("NO BROWSER ON THIS MACHINE", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(unseen)} tests of a page were SKIPPED: {unseen[0].longrepr[2]}")


def small(*overrides: str) -> list[str]:
    """The words of a small run with ``overrides``; on another kind of data without those for shapes."""
    return [w for w in SMALL if "data=csv" not in overrides or not w.startswith("data.")] + list(overrides)


def compose_values(*overrides: str) -> dict[str, Any]:
    """The whole config as plain values, as ``launcher.run`` would compose it."""
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return plain(compose("config", list(overrides)))


@pytest.fixture
def values(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``values("model=small", …)``: a composed config that writes below ``tmp_path`` only."""

    def composed(*overrides: str) -> dict[str, Any]:
        here = (f"data.cache_dir={tmp_path}/cache", f"launch.root={tmp_path}/runs")
        return compose_values(*here, *overrides)

    return composed


@pytest.fixture
def config(values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., TrainConfig]:
    """``config("optim.lr=1", …)``: a resolved ``TrainConfig`` of the small model, fp32 unless said otherwise."""

    def made(*overrides: str) -> TrainConfig:
        whole = values(*small("precision=fp32", *overrides))
        ours = {field.name: whole[field.name] for field in dataclasses.fields(TrainConfig)}
        return parse(TrainConfig, ours).resolve(Facts(cwd=tmp_path, device="cpu", bf16=False))

    return made


def packed(image: Image.Image, kind: str = "PNG") -> str:
    """``image`` in base64."""
    data = io.BytesIO()
    image.save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


def picture(seed: int, size: tuple[int, int] = (20, 14)) -> str:
    """A small picture of noise in base64; another for each ``seed``."""
    drawn = np.random.default_rng(seed)
    return packed(Image.fromarray(drawn.integers(0, 256, (size[1], size[0], 3), np.uint8)))


def write_csv(
    path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("b64string_images", "caption")
) -> Path:
    """Write ``rows`` as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def data_csv(tmp_path: Path) -> Path:
    """Twelve good rows."""
    return write_csv(tmp_path / "data.csv", [(picture(i), f"picture number {i}") for i in range(12)])


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Puts back the handlers of this process, which code under test takes over."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def type_here(
    folder: Path, env: Mapping[str, str], *words: str, door: str = "launcher.run"
) -> subprocess.CompletedProcess[str]:
    """``python -m DOOR WORDS`` typed in ``folder``, in a fork of this process: starting Python takes seconds.

    For what does not train: a fork must not use torch.
    """
    output = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(env)
            for descriptor, file in enumerate(output, start=1):
                os.dup2(file.fileno(), descriptor)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.path.insert(0, str(folder))
            sys.argv = [door, *words]
            GlobalHydra.instance().clear()
            main = import_module(door).main

            try:
                code = main()
            except SystemExit as error:
                code = int(error.code or 0)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = []
    for file in output:
        with file:
            file.seek(0)
            said.append(file.read())
    return subprocess.CompletedProcess(words, code, *said)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """``command("-m", "launcher.run", …)``: Python with these arguments, typed in ``tmp_path``; cache below it too."""

    def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, *arguments]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout)

    yield run
