"""Where named sweeps are found. Light: ``--help`` lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.runtime.errors import UserError

_SHIPPED = Path(__file__).parent.parent / "sweeps"
"""Those that come with the package, which stands beside this one."""
_ENDINGS = (".yaml", ".yml")


def find_sweep(said: str, folders: Sequence[Path], cwd: Path) -> Path:
    """The file that ``said`` means: a path, or a name in one of ``folders``, the first that has it.

    Raises:
        UserError: there is none.
    """
    if "/" in said or said.endswith(_ENDINGS):
        path = cwd / Path(said).expanduser()
        if not path.is_file():
            raise UserError(f"sweep={said}: there is no such file")
        return path
    from launcher.runtime.sections import nearest

    known = named_sweeps(folders)
    if said not in known:
        if (cwd / f"{said}.yaml").is_file():
            raise UserError(
                f"sweep={said}: there is no such sweep in {cwd / 'sweeps'}; did you mean sweep={said}.yaml?"
            )
        told = ", ".join(known) or "none"
        raise UserError(f"sweep={said}: there is no such sweep{nearest(said, known)} (there are: {told}; or a path)")
    return known[said]


def named_sweeps(folders: Sequence[Path]) -> dict[str, Path]:
    """Every sweep that has a name, and its file; of the same name the first folder's counts."""
    found = [path for folder in reversed(folders) for path in folder.glob("*.yaml")]
    return dict(sorted({path.stem: path for path in found}.items()))


def sweep_folders(cwd: Path, env: Mapping[str, str]) -> list[Path]:
    """Where named sweeps are looked for, the nearest first."""
    folders = [cwd / "sweeps"]
    if (own := user_configs(env)) is not None:
        folders.append(own / "sweeps")
    return [*folders, _SHIPPED]


def user_configs(env: Mapping[str, str]) -> Path | None:
    """Folder of the user's own configs; None for a user without a home."""
    try:
        return Path(env.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "seemore"
    except RuntimeError:
        return None
