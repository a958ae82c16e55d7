"""The command as a user types it, and what it says."""

from __future__ import annotations

import json

import pytest

from sweeps.__main__ import main


@pytest.fixture
def folder(tmp_path):
    """Where the runs of one sweep go."""
    return tmp_path / "runs" / "demo"


@pytest.fixture
def compare(capsys):
    """``compare(folder, …)``: exit code, lines of stdout, lines of stderr."""

    def run(*words):
        code = main(["compare", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return run


@pytest.fixture
def answer(compare):
    """``answer(folder, …)``: what ``--json`` prints."""

    def run(*words):
        code, lines, _ = compare(*words, "--json")
        assert code == 0
        return json.loads("\n".join(lines))

    return run


@pytest.fixture
def refused(compare):
    """``refused(folder, …)``: the one line of an error."""

    def run(*words):
        code, lines, said = compare(*words)
        assert (code, lines) == (1, []), said
        [line] = said
        assert line.startswith("error: ")
        return line

    return run
