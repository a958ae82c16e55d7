"""A program as a task: what it is told, what it tells, and what its exit code means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import type_here

PROGRAM = """
import json, os, pathlib, signal, sys, time
config = json.loads(pathlib.Path(os.environ["LAUNCHER_CONFIG"]).read_text())
folder = pathlib.Path(os.environ["LAUNCHER_RUN_DIR"])
def tell(**said):
    with open(os.environ["LAUNCHER_METRICS"], "a") as file:
        file.write(json.dumps(said) + "\\n")
{body}
"""


def write(folder: Path, body: str) -> None:
    (folder / "program.py").write_text(PROGRAM.format(body=textwrap.dedent(body)))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = ["-m", "launcher.run", "task=command", "task.argv=[python,program.py]", "+size=3", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"XDG_CONFIG_HOME": str(folder / "none")}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, **pipes)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, *words)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def read(folder: Path, name: str) -> dict:
    (path,) = folder.glob(f"runs/command/*/{name}")
    return json.loads(path.read_text())


def test_a_program_is_told_its_place_and_its_numbers_are_logged(tmp_path):
    write(
        tmp_path,
        """
        print("a bar  10%\\rhello")
        for step in (1, 2):
            tell(step=step, **{"train/loss": 1 / step, "note/why": "so", "total_steps": 2, "score": step * 10})
        tell(wrong=1)
        tell(step="many")
        tell(step=2, total_steps="many")
        tell(step=-1, score=7)
        tell(step=10**15, score=7)
        with open(os.environ["LAUNCHER_METRICS"], "a") as file:
            file.write(json.dumps({"step": 2, "last": 5}))  # no line's end
        names = ["MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
        names += ["LAUNCHER_ATTEMPT", "LAUNCHER_STEP"]
        (folder / "told.json").write_text(json.dumps({"config": config, **{n: os.environ[n] for n in names}}))
        """,
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    told = read(tmp_path, "told.json")
    assert told["config"]["size"] == 3 and told["MASTER_PORT"].isdecimal()
    assert [told[n] for n in ("RANK", "WORLD_SIZE", "LAUNCHER_ATTEMPT", "LAUNCHER_STEP")] == ["0", "1", "1", "0"]
    summary = read(tmp_path, "summary.json")
    assert (summary["status"], summary["step"], summary["train_loss"], summary["score"]) == ("COMPLETED", 2, 0.5, 20)
    assert summary["last"] == 5
    (log,) = tmp_path.glob("runs/command/*/logs/rank0.log")
    assert "hello" in log.read_text() and "10%" not in log.read_text()
    assert "LAUNCHER_METRICS: no object of JSON with a step" in log.read_text()
    (metrics,) = tmp_path.glob("runs/command/*/metrics.csv")
    assert "2,train,loss,0.5" in metrics.read_text()
    again = run(tmp_path)
    assert again.returncode == 0 and again.stdout.startswith("COMPLETED already")


def test_asked_to_stop_it_saves_and_goes_on_with_the_next_command(tmp_path):
    write(
        tmp_path,
        """
        asked = []
        signal.signal(signal.SIGUSR2, lambda *_: asked.append(1))
        step = int(os.environ["LAUNCHER_STEP"])
        (folder / f"began.{step}").touch()
        while step < 7:
            step += 1
            tell(step=step, **{"train/loss": 1.0}, saved=step == 4)
            if step == 6 and not (folder / "began.6").exists():
                while not asked:
                    time.sleep(0.01)
                sys.exit(75)
        """,
    )
    process = start(tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 1" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert run(tmp_path).returncode == 0
    (folder,) = tmp_path.glob("runs/command/*")
    assert {path.name for path in folder.glob("began.*")} == {"began.0", "began.6"}
    events = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"], e["code"]) for e in events] == [
        ("start", 0, None), ("end", 6, 75), ("start", 6, None), ("end", 7, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("sys.exit(1)", 1, "the program ended with exit code 1; see logs/rank0.log"),
        ("tell(step=1); sys.exit(1)", 70, "the program ended with exit code 1"),
        ("tell(step=1); sys.exit(3)", 3, "the program ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 70, "the program ended with signal SIGKILL"),
        ("sys.exit(75)", 75, "PREEMPTED"),
        ("sys.exit(76)", 76, "PREEMPTED"),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(1); sys.exit(1)", 76, "PREEMPTED"),
    ],
)  # fmt: skip
def test_what_an_exit_code_means(tmp_path, body, code, words):
    write(tmp_path, body)
    done = run(tmp_path)
    assert done.returncode == code and words in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("[no_such_program]", "task.argv: there is no program 'no_such_program' on PATH"),
        ("[python,nothing.py]", "task.argv: there is no file nothing.py in "),
        ("[./nothing.sh]", "task.argv: there is no file ./nothing.sh in "),
        ("[]", "task.argv=[]: should name a program and its arguments"),
        ("python", "task.argv='python': should be a valid array"),
    ],
)
def test_a_program_that_is_not_there_is_told_before_anything_is_made(tmp_path, argv, message):
    for launcher in ("basic", "submitit_local"):
        words = ("task=command", f"task.argv={argv}", f"hydra/launcher={launcher}")
        done = type_here(tmp_path, os.environ, *words)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {message}"), done.stderr
        assert not (tmp_path / "runs").exists()


def test_what_a_program_has_started_ends_with_it(tmp_path):
    write(
        tmp_path,
        """
        import subprocess
        child = subprocess.Popen(["sleep", "600"])
        (folder / "child").write_text(str(child.pid))
        sys.exit(0)
        """,
    )
    assert run(tmp_path).returncode == 0
    (file,) = tmp_path.glob("runs/command/*/child")
    status = Path(f"/proc/{file.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_arguments_may_be_numbers_and_refer_to_values(tmp_path):
    write(tmp_path, "assert sys.argv[1:] == ['--lr', '0.001', 'true'], sys.argv")
    words = ("task=command", 'task.argv=[python,program.py,--lr,"${lr}",true]', "+lr=1e-3")
    command = [sys.executable, "-m", "launcher.run", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_program_has_no_place_among_packed_members(tmp_path):
    words = (
        "-m",
        "task=command",
        "task.argv=[python,--version]",
        "+x=1,2",
        "hydra/launcher=submitit_local",
        "launch.pack=2",
    )
    done = type_here(tmp_path, os.environ, *words)
    assert done.returncode == 1 and "launch.pack=2: members are forked" in done.stderr


def test_where_jobs_have_a_setup_of_their_own_a_missing_program_is_only_told(tmp_path):
    words = ("task=command", "task.argv=[of_a_module]", "hydra/launcher=submitit_local", "site.setup=[module load it]")
    done = type_here(tmp_path, os.environ, *words, "launch.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "warning: task.argv: there is no program 'of_a_module' on PATH" in done.stderr
