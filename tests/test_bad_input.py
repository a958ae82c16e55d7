"""Wrong uses as users meet them: one clear line, exit 1, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launcher.runtime.checkpoint.reading import load
from launcher.runtime.sweepdir import SweepDir
from tests.conftest import SMALL, picture, small, type_here, write_csv
from tests.launcher.fake_slurm import FakeSlurm

GOOD = [(picture(i), f"caption {i}") for i in range(6)]


def bomb() -> str:
    """A PNG of a few hundred bytes that claims 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    return b64encode(png).decode()


def rows(path: Path, *bad: tuple[str, str]) -> None:
    write_csv(path, [*GOOD, *bad])


def surrogate(path: Path) -> None:
    rows(path)
    path.write_bytes(path.read_bytes() + GOOD[0][0].encode() + b",lone \xed\xa0\x80 surrogate\r\n")


CSV = ("data=csv", "data.path=data.csv")

# What is wrong, the file that is put there, the words typed, the words expected.
CONFIG: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("unknown key", ("optim.lrr=1",), ("unknown key 'optim.lrr'", "did you mean 'optim.lr'")),
    ("unknown key in a +", ("+optim.lrr=1",), ("unknown key 'optim.lrr'", "did you mean 'lr'")),
    ("unknown group", ("optimiser=adam",), ("unknown key 'optimiser'", "did you mean 'optim'")),
    ("unknown option", ("precision=fp8",), ("precision=fp8", "allowed: auto, bf16, fp16, fp32")),
    ("wrong type", ("optim.lr=fast",), ("optim.lr='fast'", "number")),
    ("fraction for a count", ("trainer.max_steps=1.5",), ("trainer.max_steps=1.5", "integer")),
    ("out of range", ("model.dropout=1",), ("model.dropout=1", "less than 1")),
    ("not finite", ("optim.lr=inf",), ("optim.lr", "finite")),
    ("no peak", ("throughput.peak_tflops=mesure",), ("throughput.peak_tflops='mesure'", "did you mean 'measure'")),
    ("both lengths", ("trainer.epochs=2",), ("max_steps=6", "epochs=2", "exactly one")),
    ("heads do not divide", ("model.n_head=3",), ("n_embd=16", "n_head=3")),
    ("patches do not divide", ("model.patch_size=7",), ("img_size=16", "patch_size=7")),
    ("no room for text", ("model.positions=4",), ("positions=4", "4 image tokens")),
    ("fp16 on a CPU", ("precision=fp16", "hardware=cpu"), ("precision=fp16", "needs a GPU")),
    ("several nodes", ("hardware.nodes=2",), ("hardware.nodes=2", "this process is one rank")),
    ("no such home", ("launch.root='~nosuchuser/x'",), ("~nosuchuser/x",)),
    ("no model", ("model=null",), ("group override",)),
    ("a root that is a file", ("launch.root=/etc/passwd",), ("/etc/passwd", "launch.root")),
    ("a cache below a file", ("data.cache_dir=/etc/passwd/x",), ("/etc/passwd/x", "data.cache_dir")),
    ("unprintable", ("launch.name='a\x1bb'",), ("launch.name", "cannot be printed")),
    ("task that is none", ("task.schema=os:path",), ("task.schema='os:path'", "dataclass")),
    ("negative seed", ("trainer.seed=-1",), ("trainer.seed=-1",)),
    ("no GPU", ("hardware=gpu",), ("cuda", "hardware=cpu")),
    ("no path", ("data=csv",), ("data.path=",)),
    ("missing file", ("data=csv", "data.path=nowhere.csv"), ("nowhere.csv", "No such file")),
    ("a folder", ("data=csv", "data.path=."), ("is no file",)),
    ("batch larger than the data", ("trainer.batch_size=41",), ("trainer.batch_size=41", "data.count=40")),
    ("name with a slash", ("launch.name=a/b",), ("name='a/b'", "no slash")),
    ("not an override", ("whatever",), ("whatever", "key=value")),
]
# The same for what is handed to a queue.
LAUNCH: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("newline in a name", ("hardware=slurm", "launch.name='a\nb'"), ("launch.name", "cannot be printed")),
    ("newline in a job's name", ("hardware=slurm", "hydra.launcher.name='a\nb'"), ("hydra.launcher.name", "printed")),
    ("newline in a comment", ("hardware=slurm", "hydra.launcher.comment='a\n#SBATCH --x'"), ("comment", "printed")),
    ("newline in a setup line", ("hardware=slurm", "hydra.launcher.setup=['a\nb']"), ("setup", "printed")),
    ("newline in an option", ("hardware=slurm", "+hydra.launcher.additional_parameters={a\nb: 1}"), ("key=value",)),
    ("shell in an option", ("hardware=slurm", "+hydra.launcher.additional_parameters={a|touch x: 1}"), ("option",)),
    ("shell as an option", ("hardware=slurm", "+hydra.launcher.additional_parameters={$(touch x): 1}"), ("key=value",)),
    ("space in an option", ("hardware=slurm", "+hydra.launcher.additional_parameters={a --b: 1}"), ("option",)),
    ("option of ours", ("hardware=slurm", "+hydra.launcher.additional_parameters={array: 0-3}"), ("array", "arrays")),
    ("unknown key of the queue", ("hardware=slurm", "hydra.launcher.partitoin=x"), ("hydra.launcher.partitoin",)),
    ("wrong type for the queue", ("hardware=slurm", "hydra.launcher.nodes=many"), ("hydra.launcher.nodes", "many")),
    ("no nodes", ("hardware=slurm", "hydra.launcher.nodes=0"), ("hydra.launcher.nodes=0", "at least 1")),
    ("unknown partition", ("hardware=slurm", "hydra.launcher.partition=no"), ("Invalid partition name",)),
    ("GPU without GPUs", ("hardware=slurm", "hardware.device=cuda"), ("hardware.device=cuda", "gpus_per_node")),
    ("no such home", ("hardware=slurm", "launch.root='~nosuchuser/x'"), ("launch.root=~nosuchuser/x",)),
    ("no such cluster", ("hardware=slurm", "site.slurm_conf=/no/such"), ("site.slurm_conf=/no/such", "cluster up")),
    ("a root that is a file", ("hardware=slurm", "launch.root=/etc/passwd"), ("/etc/passwd", "launch.root")),
    ("unknown site", ("hardware=slurm", "site=nowhere"), ("site=nowhere", "disposable")),
    ("unknown key of a site", ("hardware=slurm", "+site.partitoin=x"), ("'site.partitoin'", "did you mean")),
    ("several nodes here", ("hardware=local_2", "hardware.nodes=2"), ("hardware.nodes=2", "one node")),
    ("no GPUs here", ("hardware=local_2", "hardware.device=cuda"), ("hardware.gpus_per_node=2", "shows 0 GPUs")),
    ("nothing at a time", ("hardware=local_2", "launch.parallel=0"), ("launch.parallel=0",)),
    ("names of a sweep", ("-m", "hardware=slurm", "launch.name=a,b"), ("launch.name", "differs between members")),
    ("a wait for some", ("-m", "hardware=slurm", "launch.wait=true,false"), ("launch.wait", "differs")),
    ("launchers of a sweep", ("-m", "hardware=cpu,slurm"), ("basic for some", "submitit_slurm for others")),
    ("a wrong member", ("-m", "hardware=slurm", "trainer.seed=0,-1"), ("trainer.seed=-1", "1 of 2 members")),
    ("a package that is none", ("hardware=slurm", "task.target=nowhere:train"), ("package nowhere",)),
]
FILES: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("no columns", lambda p: write_csv(p, GOOD, ("image", "text")), ("b64string_images", "'image', 'text'")),
    ("zero rows", lambda p: write_csv(p, []), ("no rows",)),
    ("empty file", lambda p: p.write_text(""), ("is empty",)),
    ("open quote", lambda p: p.write_text('b64string_images,caption\n"abc'), ("quote",)),
    ("few rows", lambda p: write_csv(p, GOOD[:3]), ("trainer.batch_size=4", "3 rows")),
]
ROWS: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("base64", lambda p: rows(p, ("!!!", "x")), ("row 7", "base64")),
    ("image", lambda p: rows(p, (b64encode(b"no picture").decode(), "x")), ("row 7", "JPEG, PNG, WEBP")),
    ("cut picture", lambda p: rows(p, (b64encode(b64decode_half(GOOD[0][0])).decode(), "x")), ("row 7", "damaged")),
    ("bomb", lambda p: rows(p, (bomb(), "x")), ("row 7", "900000000 pixels")),
    ("NUL", lambda p: rows(p, (picture(1), "a\0b")), ("row 7", "NUL")),
    ("surrogate", surrogate, ("row 7", "lone surrogate")),
    ("no caption", lambda p: rows(p, (picture(1), " ")), ("row 7", "caption is empty")),
    ("too long", lambda p: rows(p, (picture(1), "x" * 200)), ("row 7", "model.positions")),
    ("fields", lambda p: p.write_text("b64string_images,caption\n" + "a,b,c\n" * 6), ("row 1", "3 fields")),
]


def b64decode_half(text: str) -> bytes:
    from base64 import b64decode

    return b64decode(text)[: len(text) // 2]


def assert_one_line(done, words: tuple[str, ...]) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == done.stderr.splitlines()[-1], done.stderr
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(("overrides", "words"), [case[1:] for case in CONFIG], ids=[case[0] for case in CONFIG])
def test_a_wrong_config_plans_nothing(command, tmp_path, overrides, words):
    done = command("-m", "launcher.run", *small(*overrides))
    assert_one_line(done, words)
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.glob("runs/*/*/checkpoints"))


@pytest.mark.parametrize(("overrides", "words"), [case[1:] for case in LAUNCH], ids=[case[0] for case in LAUNCH])
def test_a_wrong_launch_plans_and_submits_nothing(tmp_path, overrides, words):
    slurm = FakeSlurm(tmp_path / "slurm")
    home = tmp_path / "home"
    home.mkdir()
    env = slurm.env | {"XDG_CACHE_HOME": str(home / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    flags = tuple(word for word in overrides if word == "-m")
    done = type_here(home, env, *flags, *small(*overrides[len(flags) :]))
    assert_one_line(done, words)
    assert len(done.stderr.splitlines()) == 1 and slurm.submitted == []
    assert not list(home.glob("runs/*/*/status.json")) and not list(tmp_path.rglob("x"))


def test_without_slurm_a_line_says_where_to_find_one(tmp_path):
    done = type_here(tmp_path, {"PATH": "/nowhere", "HOME": str(tmp_path)}, *small("hardware=slurm"))
    assert_one_line(done, ("no Slurm on PATH", "python -m slurm up"))
    assert not (tmp_path / "runs").exists()


def test_shell_in_names_is_text(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm")
    env = slurm.env | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    bad = 'a $(touch canary) `touch canary` ; touch canary " % j'
    words = [f"launch.name='{bad}'", f"hydra.launcher.name='{bad}'", f"hydra.launcher.comment='{bad}'"]
    done = type_here(tmp_path, env, *small("hardware=slurm", *words))
    assert done.returncode == 0 and (tmp_path / "runs" / bad).is_dir(), done.stderr
    (job,) = slurm.state["jobs"].values()
    (slurm.bin / "srun").write_text("#!/bin/sh\n")
    script = ["bash", job["script"]]
    ran = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert ran.stderr == "" and not list(tmp_path.rglob("canary"))


def test_the_same_sweep_typed_twice_at_once_has_one_winner(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm")
    words = small("hardware=slurm", "launch.name=sweep")
    with SweepDir(tmp_path / "runs" / "sweep").locked():
        done = type_here(tmp_path, slurm.env | {"XDG_CACHE_HOME": str(tmp_path)}, *words)
    assert_one_line(done, ("another command is submitting it",))
    assert slurm.submitted == []


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_wrong_file_plans_nothing(command, tmp_path, make, words):
    make(tmp_path / "data.csv")
    done = command("-m", "launcher.run", *small(*CSV))
    assert_one_line(done, words)
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in ROWS], ids=[case[0] for case in ROWS])
def test_a_bad_row_is_named_and_leaves_no_half_built_cache(command, tmp_path, make, words):
    make(tmp_path / "data.csv")
    done = command("-m", "launcher.run", *small("trainer.max_steps=2", *CSV))
    assert_one_line(done, words)
    left = [p for p in (tmp_path / "cache").rglob("*") if p.name.startswith(".tmp")]
    (status,) = (tmp_path / "runs").glob("*/*/status.json")
    assert not left and json.loads(status.read_text())["state"] == "FAILED"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and the folder in which it was typed."""
    import sys

    folder = tmp_path_factory.mktemp("trained")
    env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    words = [sys.executable, "-m", "launcher.run", *SMALL]
    subprocess.run(words, cwd=folder, env=env, check=True, capture_output=True)
    return next(folder.glob("runs/*/*"))


class Gadget:
    """Unpickling this would touch a file: what a malicious checkpoint does."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_pickle_bomb_as_checkpoint_is_refused_and_does_nothing(command, tmp_path, trained):
    torch.save({"model": Gadget(tmp_path / "canary")}, tmp_path / "bomb.pt")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Gadget(tmp_path / "canary")))
    for words in (
        ("evaluate", str(trained), "--checkpoint", "bomb.pt"),
        ("generate", str(trained), "--val", "1", "--checkpoint", "raw.pth"),
        ("convert", "bomb.pt", "out"),
        ("convert", "raw.pth", "out"),
    ):
        assert_one_line(command("-m", "vlm", *words), ("refused",))
    assert not (tmp_path / "canary").exists() and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_named(command, tmp_path, trained):
    content = load(trained / "checkpoints/step-000000000006.a0001")
    content["model"]["decoder.norm.weight"] = torch.ones(99)
    torch.save(content, tmp_path / "other.pt")
    done = command("-m", "vlm", "evaluate", str(trained), "--checkpoint", "other.pt")
    assert_one_line(done, ("another model", "decoder.norm.weight", "(99,)", "(16,)"))


def test_a_checkpoint_without_a_model_is_named(command, tmp_path, trained):
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    done = command("-m", "vlm", "evaluate", str(trained), "--checkpoint", "other.pt")
    assert_one_line(done, ("is no checkpoint of this task",))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("generate", "nowhere", "--val", "1"), "nowhere: is no run"),
        (("generate", "RUN"), "name pictures"),
        (("generate", "RUN", "nowhere.jpg"), "nowhere.jpg: No such file"),
        (("generate", "RUN", "text.txt"), "text.txt: the picture is no readable"),
        (("generate", "RUN", "--val", "1", "--prompt", "x" * 500), "--prompt"),
        (("evaluate", "RUN", "--checkpoint", "nowhere.pt"), "nowhere.pt: no such file"),
        (("evaluate", "RUN", "--device", "cuda"), "cuda"),
        (("export", "RUN", "full"), "full: is not empty"),
        (("convert", "nowhere.pth", "out"), "nowhere.pth: no such file"),
        (("convert", "text.txt", "out"), "text.txt: refused"),
    ],
)
def test_the_doors_of_vlm_say_what_is_wrong(command, tmp_path, trained, words, expected):
    (tmp_path / "text.txt").write_text("no picture")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    done = command("-m", "vlm", *(str(trained) if word == "RUN" else word for word in words))
    assert_one_line(done, (expected,))


@pytest.mark.parametrize("file", ["status.json", "plan.json", "metrics.csv"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe"])
def test_a_damaged_file_of_a_run_is_named(command, tmp_path, trained, file, content):
    run = tmp_path / "runs" / trained.parent.name / trained.name
    shutil.copytree(trained, run)
    (run / "status.json").write_text('{"state": "FAILED"}')
    (run / file).write_bytes(content)
    shutil.rmtree(run / "checkpoints" / "step-000000000006.a0001")
    done = command("-m", "launcher.run", *SMALL)
    if file != "plan.json":  # metrics are written anew as it starts over; the summary says that it is done
        assert done.returncode == 0, done.stderr
    else:
        assert_one_line(done, (file,))


@pytest.mark.parametrize("file", ["images.u8", "rows.json", "caption_ends.i64", "index.json", "spans.i64"])
def test_a_damaged_cache_is_named(command, tmp_path, file):
    words = ("-m", "launcher.run", *small(*CSV, "trainer.max_steps=2"))
    rows(tmp_path / "data.csv")
    assert command(*words).returncode == 0
    (damaged,) = (tmp_path / "cache").rglob(file)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    assert_one_line(command(*words, "optim.lr=1"), (str(damaged.parent), "remove this folder"))


@pytest.mark.parametrize("option", [("--limit", "0"), ("--limit", "-1"), ("--limit", "x")])
def test_a_number_out_of_range_is_bad_usage(command, trained, option):
    assert command("-m", "vlm", "evaluate", str(trained), *option).returncode == 2


def test_a_run_directory_of_another_config_is_left_alone(command, tmp_path, trained):
    plan = json.loads((trained / "plan.json").read_text())
    plan["science"]["optim"]["lr"] = 9.0
    other = tmp_path / "runs" / trained.parent.name / trained.name
    other.mkdir(parents=True)
    (other / "plan.json").write_text(json.dumps(plan))
    done = command("-m", "launcher.run", *SMALL)
    assert_one_line(done, ("belongs to another config",))
    assert json.loads((other / "plan.json").read_text()) == plan
