"""Where configs are found: this product's own, those of the project that uses it, and those of the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import launcher

CONFIG_FOLDER = Path(launcher.__file__).resolve().parents[1] / "conf"
"""The package ``conf``, by its place: a project may have a package of that name itself."""
CONFIG_NAME = "config"


def other_folders(cwd: Path, env: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Folders with more files of config groups, whose they are first: ``conf`` in ``cwd``, ``~/.config/seemore``."""
    project = cwd / "conf"
    if project.is_dir() and project.resolve() != CONFIG_FOLDER:
        yield "project", project
    with suppress(RuntimeError):  # a user without a home
        user = Path(env.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "seemore"
        if user.is_dir():
            yield "seemore-user", user
