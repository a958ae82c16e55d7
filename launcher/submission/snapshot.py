"""A snapshot of the code: jobs import from a copy, so editing a file changes nothing in a queued job.

The copy holds the git worktree in which the command was typed: tracked files as they are now and untracked ones, not
what git ignores. Packages that jobs import from elsewhere (this one, where it was installed) are copied beside them.
A link inside stays a link, a small file elsewhere that a link leads to is copied, a link to a folder elsewhere leads
there still.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from launcher.runtime.errors import UserError
from launcher.runtime.redaction import knows_secrets, secret_in

_ID_DIGITS = 12
_PACKAGES_FOLDER = ".packages"
"""Where packages from outside the worktree stand in a snapshot."""
_LARGE_BYTES = 10_000_000
"""Most bytes of one untracked file."""
_LARGE_IN_ALL_BYTES = 100_000_000
"""Most bytes of all untracked files."""
_NEVER_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", ".env*")


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code, named by its content; it is there once it was written."""

    id: str
    path: Path
    import_paths: tuple[Path, ...]
    """What stands before everything else on a job's ``PYTHONPATH``."""
    cwd: Path
    """The copy of the folder in which the command was typed; that folder itself where it is in no worktree."""
    copies: Mapping[str, Path] = field(repr=False)
    """Names in the copy, and the files that they are copied from."""
    links: Mapping[str, str] = field(repr=False)
    """Names in the copy that are symbolic links, and what stands in those."""
    worktree: Path | None = None
    """What was copied; None: packages alone."""

    def without_live_code(self, env: Mapping[str, str]) -> dict[str, str]:
        """``env`` without the worktree's own folders in PYTHONPATH: what is not in the copy is not to be imported."""
        entries = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
        kept = [e for e in entries if self.worktree is None or not Path(e).resolve().is_relative_to(self.worktree)]
        return {name: value for name, value in env.items() if name != "PYTHONPATH"} | (
            {"PYTHONPATH": os.pathsep.join(kept)} if kept else {}
        )

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """``env`` of a process that imports from the copy first."""
        paths = [*map(str, self.import_paths), *filter(None, [env.get("PYTHONPATH")])]
        return {**env, "PYTHONPATH": os.pathsep.join(paths)}

    def at(self, folder: Path) -> Snapshot:
        """The same copy, made as ``folder`` for a while."""
        paths = tuple(folder / path.relative_to(self.path) for path in self.import_paths)
        inside = self.cwd.is_relative_to(self.path)
        cwd = folder / self.cwd.relative_to(self.path) if inside else self.cwd
        return replace(self, path=folder, import_paths=paths, cwd=cwd)

    def write(self) -> None:
        """Copy aside, make read-only, rename: a snapshot is there whole or not at all, and once for each content.

        Raises:
            UserError: a file was changed since its content was read.
        """
        if self.path.exists():
            return
        aside = self.path.with_name(f".{self.id}.{os.getpid()}.tmp")
        try:
            for name, source in self.copies.items():
                _copy(source, aside / name)
            for name, target in self.links.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).symlink_to(target)
            aside.mkdir(parents=True, exist_ok=True)
            if _content_id({name: aside / name for name in self.copies}, self.links) != self.id:
                raise UserError("files of the code were changed while they were copied; the same command copies anew")
            aside.rename(self.path)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: is gone since its content was read; give the same command again"
            ) from None
        except OSError:
            if not self.path.exists():  # somebody else has just made the same one
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def take_snapshot(into: Path, cwd: Path, packages: Iterable[str], leave_out: Path) -> Snapshot:
    """What a copy of the code in ``into/<id>`` holds; nothing is written yet.

    Args:
        packages: top-level names of what jobs import.
        leave_out: folder of runs; not code, wherever it stands.

    Raises:
        UserError: an untracked file is too large, or a package cannot be found; a secret of the site stands in a file.
    """
    worktree = _worktree(cwd)
    leave_out = leave_out.resolve()
    if worktree and worktree.is_relative_to(leave_out):  # launch.root=. : then only this sweep is told from code
        leave_out = into.parent.resolve()
    files = sorted(_worktree_files(worktree, leave_out)) if worktree else []
    copies, links = _sorted_out(worktree, files) if worktree else ({}, {})
    paths = {package: _package_path(package) for package in packages}
    inside = {package for package, path in paths.items() if _is_inside(path, worktree, copies)}
    for package in paths.keys() - inside:
        copies |= _package_files(package)
    if knows_secrets():
        _require_no_secret(copies)
    folders = {parent for name in copies for parent in Path(name).parents}
    content_id = _content_id(copies, links)
    path = into / content_id
    tops = [paths[package].parent for package in paths if package in inside]
    import_paths = tuple(path / folder for folder in _import_folders(folders, worktree, tops, len(inside) < len(paths)))
    return Snapshot(content_id, path, import_paths, _mapped(cwd, worktree, path, folders), copies, links, worktree)


def _require_no_secret(copies: Mapping[str, Path]) -> None:
    for name, path in copies.items():
        if (secret := secret_in(path.read_bytes())) is not None:
            raise UserError(
                f"{path}: holds the value of site.secrets.{secret}, and {name} would be copied with the code of each "
                "sweep; keep it in ~/.config/seemore/site, or write ${oc.env:NAME} there and set NAME"
            )


def _worktree(cwd: Path) -> Path | None:
    """Top of the git worktree around ``cwd``, links resolved."""
    try:
        words = ["git", "-C", str(cwd), "rev-parse", "--show-toplevel"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return None
    return Path(done.stdout.rstrip("\n")).resolve() if done.returncode == 0 and done.stdout.strip() else None


def _worktree_files(worktree: Path, leave_out: Path) -> Iterator[str]:
    """Files of the worktree by their names in it; deleted ones, secrets and runs left out.

    Raises:
        UserError: untracked files are too large.
    """
    untracked = set(_git_files(worktree, "--others", "--exclude-standard"))
    total = 0
    for name in [*_git_files(worktree, "--recurse-submodules"), *untracked]:
        path = worktree / name
        if _is_secret(Path(name)) or path.is_relative_to(leave_out) or not os.path.lexists(path):
            continue
        if name in untracked:
            size = path.lstat().st_size
            total += size
            if size > _LARGE_BYTES:
                raise UserError(
                    f"{path}: is not tracked by git and has {size / 1e6:.0f} MB, too much for a copy of the code "
                    f"(allowed: {_LARGE_BYTES / 1e6:.0f} MB); list it in .gitignore, or commit it"
                )
            if total > _LARGE_IN_ALL_BYTES:
                raise UserError(
                    f"{path}: with it, files that git does not track have more than "
                    f"{_LARGE_IN_ALL_BYTES / 1e6:.0f} MB; list those that are no code in .gitignore"
                )
        if path.is_symlink() or path.is_file():  # a folder: a repository inside this one, untracked
            yield name


def _is_secret(name: Path) -> bool:
    return any(part.startswith(".env") for part in name.parts)


def _sorted_out(worktree: Path, names: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Which of ``names`` are copied from where, and which are links with what in them."""
    known = {Path(name) for name in names}
    known |= {parent for name in known for parent in name.parents}
    copies: dict[str, Path] = {}
    links: dict[str, str] = {}
    for name in names:
        path = worktree / name
        if not path.is_symlink():
            copies[name] = path
            continue
        target = Path(os.path.realpath(path))
        if _is_secret(target.relative_to(worktree) if target.is_relative_to(worktree) else target):
            continue
        if target.is_relative_to(worktree) and target.relative_to(worktree) in known:
            links[name] = os.path.relpath(target, path.parent)
        elif target.is_file() and target.stat().st_size <= _LARGE_BYTES:
            copies[name] = target
        else:
            links[name] = str(target)
    return copies, links


def _git_files(worktree: Path, *options: str) -> list[str]:
    words = ["git", "-C", str(worktree), "ls-files", "-z", *options]
    done = subprocess.run(words, capture_output=True, timeout=120, check=False)
    if done.returncode != 0:
        raise UserError(f"git ls-files in {worktree}: {done.stderr.decode(errors='replace').strip()}")
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _package_path(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise UserError(f"package {package}: cannot be found for the copy of the code")
    found = next(iter(spec.submodule_search_locations or ()), None) or spec.origin
    return Path(str(found)).resolve()


def _is_inside(path: Path, worktree: Path | None, copies: Mapping[str, Path]) -> bool:
    """Whether a package's code is among the worktree's files; a virtual environment in it is ignored by git."""
    if worktree is None or not path.is_relative_to(worktree):
        return False
    name = str(path.relative_to(worktree))
    return name in copies or any(copy.startswith(name + os.sep) for copy in copies)


def _package_files(package: str) -> dict[str, Path]:
    path = _package_path(package)
    if path.is_file():
        return {f"{_PACKAGES_FOLDER}/{path.name}": path}
    files: dict[str, Path] = {}
    for folder, names, members in os.walk(path):
        ignored = _NEVER_COPIED(folder, [*names, *members])
        names[:] = [name for name in names if name not in ignored]
        for member in set(members) - ignored:
            file = Path(folder) / member
            if file.is_file():  # a link to one too: some installers make links into their cache
                files[f"{_PACKAGES_FOLDER}/{package}/{file.relative_to(path)}"] = file.resolve()
    return files


def _content_id(copies: Mapping[str, Path], links: Mapping[str, str]) -> str:
    """Equal for equal names, contents, links and permissions to execute.

    Raises:
        UserError: a file cannot be read.
    """
    lines = [f"{name}\0link\0{target}\n" for name, target in links.items()]
    for name, path in copies.items():
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be copied for jobs ({error.strerror})") from None
        lines.append(f"{name}\0{'program' if os.access(path, os.X_OK) else 'file'}\0{content}\n")
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()[:_ID_DIGITS]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    target.chmod(stat.S_IMODE(target.stat().st_mode) & ~0o222)  # folders stay writable: `rm -r runs/…` must work


def _import_folders(
    folders: set[Path], worktree: Path | None, tops: Sequence[Path], has_packages: bool
) -> Iterator[Path]:
    """Those of ``folders`` that stand for folders of ``sys.path``, in their order.

    Args:
        tops: folders that hold packages of jobs; an editable install may find those without ``sys.path``.
    """
    for entry in dict.fromkeys([*(Path(p).resolve() for p in sys.path), *tops]):
        if worktree and entry.is_relative_to(worktree) and (inside := entry.relative_to(worktree)) in folders:
            yield inside
    if has_packages:
        yield Path(_PACKAGES_FOLDER)


def _mapped(cwd: Path, worktree: Path | None, copy: Path, folders: set[Path]) -> Path:
    if worktree is None:
        return cwd
    inside = cwd.resolve().relative_to(worktree)
    return copy / inside if inside in folders else copy


def top_level(names: Sequence[str]) -> list[str]:
    """Packages of ``package.module:attribute`` names: what a job imports its task from."""
    return [name.partition(":")[0].partition(".")[0] for name in names]
