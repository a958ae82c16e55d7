"""How commands end: exit codes, and what is said on stderr."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launcher.runtime.errors import ExitCode, TrainingFailed, UserError, guarded, say_error


def raising(error):
    def command():
        raise error

    return command


def test_the_codes_are_those_that_scripts_rely_on():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USER_ERROR": 1,
        "USAGE": 2,
        "TRAINING_FAILED": 3,
        "BUG": 70,
        "STOPPED_SAVED": 75,
        "STOPPED_NOT_SAVED": 76,
    }


@pytest.mark.parametrize("code", [0, 3, 75])
def test_what_a_command_returns_is_its_code_and_nothing_is_said(code, capsys):
    assert guarded(lambda: code) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "code"), [(UserError, 1), (TrainingFailed, 3)])
def test_an_error_of_the_user_is_one_line_without_traceback(kind, code, capsys):
    assert guarded(raising(kind("optim.lr=x:\n  should be a number"))) == code
    assert capsys.readouterr() == ("", "error: optim.lr=x: should be a number\n")


def test_an_interrupt_is_said_in_one_word(capsys):
    assert guarded(raising(KeyboardInterrupt())) == 76
    assert capsys.readouterr() == ("", "interrupted\n")


def test_anything_else_is_our_bug_and_keeps_its_traceback(capsys):
    assert guarded(raising(ZeroDivisionError("oh"))) == 70
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("Traceback (most recent call last):")
    assert "ZeroDivisionError: oh" in said
    assert said.splitlines()[-1].startswith("this is a bug in seemore-launcher")


def test_leaving_on_purpose_passes_through():
    with pytest.raises(SystemExit) as left:
        guarded(raising(SystemExit(2)))
    assert left.value.code == 2


def test_a_closed_pipe_ends_in_silence():
    script = (
        "import sys; from launcher.runtime.errors import guarded\n"
        "def command():\n    print('x\\n' * 100_000)\n    return 0\n"
        "sys.exit(guarded(command))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


def test_an_error_is_said_in_one_line_whatever_its_text(capsys):
    say_error(UserError("a\n\tb   c"))
    assert capsys.readouterr().err == "error: a b c\n"


def test_a_tracker_that_never_ends_and_its_goodbyes_do_not_keep_a_process():
    code = """if True:
        import atexit, threading
        from launcher.runtime.errors import TRACKER_THREAD, leave
        never = threading.Event()
        atexit.register(never.wait)
        threading.Thread(target=never.wait, name=TRACKER_THREAD + "slow", daemon=True).start()
        print("said")
        leave(75)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, "said\n", "")


def test_without_one_goodbyes_are_said():
    code = "import atexit; from launcher.runtime.errors import leave; atexit.register(print, 'bye'); leave(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "bye\n")
