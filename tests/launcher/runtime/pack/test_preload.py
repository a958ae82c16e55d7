"""What a worker imports for its members: never what would keep it from being forked."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY

TRY = """
import sys, threading
from launcher.runtime.pack.preload import preload_too
sys.path.insert(0, sys.argv[1])
for names in (["quiet_one", "no_such_module"], ["threads_one"], ["threads_one", "quiet_two"], ["dies_one"]):
    preload_too(names)
    assert threading.active_count() == 1
print(*sorted(name for name in sys.modules if name.endswith(("_one", "_two"))))
"""


def test_modules_are_imported_ahead_unless_they_start_threads_or_break(tmp_path):
    (tmp_path / "quiet_one.py").write_text("")
    (tmp_path / "quiet_two.py").write_text("")
    (tmp_path / "threads_one.py").write_text(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    (tmp_path / "dies_one.py").write_text("import os; os._exit(9)")
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path)], cwd=REPOSITORY, input="", capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["quiet_one", "quiet_two"]), done.stderr
