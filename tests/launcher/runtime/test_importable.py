"""A task's function is tried before anything is queued; what is wrong is said in one line."""

from __future__ import annotations

import re
import sys

import pytest

from launcher.runtime.errors import UserError
from launcher.runtime.importable import main, resolve_task

MODULE = """
import functools
def train(session): ...
def with_more(session, verbose=False): ...
def with_none(): ...
def with_two(session, model): ...
class Model:
    def __call__(self, session): ...
partial = functools.partial(with_two, model=1)
called, number = Model(), 3
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "tried_task.py").write_text(MODULE)
    (tmp_path / "broken_task.py").write_text("\nimport no_such_package\n")
    (tmp_path / "torn_task.py").write_text("def train(session)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("tried_task", "broken_task", "torn_task"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["train", "with_more", "partial", "called"])
def test_what_takes_the_session_is_a_task(name):
    assert callable(resolve_task(f"tried_task:{name}"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tried_task:trian", "task.target='tried_task:trian': module tried_task has no trian"),
        ("no_such_module:train", "task.target='no_such_module:train': there is no module no_such_module"),
        ("tried_task", "task.target='tried_task': should be package.module:name"),
        ("tried_task:with_none", "task.target='tried_task:with_none': should take one argument, the session; it "),
        ("tried_task:with_two", "task.target='tried_task:with_two': should take one argument, the session; it takes "),
        ("tried_task:number", "task.target='tried_task:number': is no function but a int"),
        ("broken_task:train", "task.target='broken_task:train': cannot be imported: ModuleNotFoundError: No module "
         "named 'no_such_package' (broken_task.py, line 2)"),
        ("torn_task:train", "task.target='torn_task:train': cannot be imported: SyntaxError: "),
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_told_in_a_line(target, message, monkeypatch, capsys):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        resolve_task(target)
    monkeypatch.setattr(sys, "argv", ["importable", target])
    assert main() == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
