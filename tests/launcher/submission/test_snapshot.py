"""The copy of the code that jobs import from."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.runtime.errors import UserError
from launcher.submission import snapshot as module
from launcher.submission.snapshot import Snapshot, take_snapshot


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=u", "-c", "user.email=e", "-c", "protocol.file.allow=always")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def put(folder: Path, name: str, text: str = "x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "my repo"
    folder.mkdir()
    git(folder, "init", "-q")
    for name in ("a.py", "package/b.py", "deleted.py", "renamed.py", "modified.py", "scripts/run.sh"):
        put(folder, name, f"# {name}\n")
    (folder / "scripts/run.sh").chmod(0o755)
    put(folder, ".gitignore", "ignored/\n*.log\nruns/\n.venv/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


def taken(cwd: Path, packages: tuple[str, ...] = (), runs: Path | None = None) -> Snapshot:
    root = runs or cwd / "runs"
    into = root / "sweep" / "code"
    into.mkdir(parents=True, exist_ok=True)
    return take_snapshot(into, cwd, packages, leave_out=root)


def written(snapshot: Snapshot) -> dict[str, str]:
    snapshot.write()
    files = [p for p in snapshot.path.rglob("*") if not p.is_dir() or p.is_symlink()]
    return {str(p.relative_to(snapshot.path)): f"-> {p.readlink()}" if p.is_symlink() else p.read_text() for p in files}


def test_it_holds_the_worktree_as_it_is_and_neither_runs_nor_secrets_nor_what_git_ignores(repo):
    (repo / "deleted.py").unlink()
    git(repo, "mv", "renamed.py", "other name.py")
    put(repo, "modified.py", "new")
    odd = [
        "untracked.py",
        "line\nbreak.py",
        "ünïcode 漢.py",
        "-dash",
        "quote'\".py",
        "deep/er/c.py",
        os.fsdecode(b"raw\xff"),
    ]
    for name in [
        *odd,
        "ignored/x.py",
        "x.log",
        ".env",
        ".envrc",
        ".env.d/token",
        "package/.env.local",
        "runs/s/plan.json",
    ]:
        put(repo, name)
    git(repo, "add", "-f", "package/.env.local")
    git(repo, "add", "-N", "untracked.py")
    files = written(taken(repo))
    assert set(files) == {
        "a.py", "package/b.py", "modified.py", "other name.py", "scripts/run.sh", ".gitignore", *odd
    }  # fmt: skip
    assert files["modified.py"] == "new"


def test_files_are_read_only_programs_stay_programs_and_rm_works(repo):
    put(repo, "locked.py").chmod(0o400)
    copy = taken(repo)
    copy.write()
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in copy.path.rglob("*") if p.is_file()}
    assert not any(mode & 0o222 for mode in modes.values())
    assert modes["run.sh"] & 0o100 and not modes["a.py"] & 0o100
    shutil.rmtree(repo / "runs")
    assert not copy.path.exists()


def test_the_same_content_has_the_same_id_and_is_copied_once(repo):
    first = taken(repo)
    first.write()
    inode = (first.path / "a.py").stat().st_ino
    (repo / "a.py").touch()
    again = taken(repo)
    again.write()
    assert again.id == first.id and (again.path / "a.py").stat().st_ino == inode
    assert [p.name for p in first.path.parent.iterdir()] == [first.id], "nothing half-made is left"


@pytest.mark.parametrize("how", ["content", "name", "added", "deleted", "executable", "link"])
def test_another_content_has_another_id(repo, how):
    before = taken(repo).id
    if how == "content":
        put(repo, "a.py", "y")
    elif how == "name":
        (repo / "a.py").rename(repo / "z.py")
    elif how == "added":
        put(repo, "new.py")
    elif how == "deleted":
        (repo / "a.py").unlink()
    elif how == "executable":
        (repo / "a.py").chmod(0o755)
    else:
        (repo / "link.py").symlink_to("a.py")
    assert taken(repo).id != before


def test_links(repo, tmp_path):
    outside = put(tmp_path, "shared/lib.py", "outside")
    secret = put(repo, ".env", "password")
    put(repo, "ignored/data.bin", "data")
    big = put(tmp_path, "shared/big.bin")
    os.truncate(big, 20_000_000)
    targets = {
        "relative.py": "package/b.py", "absolute.py": repo / "package/b.py", "folder": "package",
        "up/../link.py": "a.py",
        "outside.py": outside, "outside_relative.py": "../shared/lib.py", "outside_folder": tmp_path / "shared",
        "dangling": "nowhere", "loop": "loop", "secret": secret, "ignored_data": "ignored/data.bin", "big": big,
    }  # fmt: skip
    (repo / "up").mkdir()
    for name, target in targets.items():
        (repo / name).symlink_to(target)
    snapshot = taken(repo)
    files = written(snapshot)
    assert files["relative.py"] == files["absolute.py"] == "-> package/b.py" and files["folder"] == "-> package"
    assert files["outside.py"] == files["outside_relative.py"] == "outside", "an edit there must not reach a job"
    assert files["ignored_data"] == "data"
    assert files["outside_folder"] == f"-> {tmp_path / 'shared'}" and files["big"] == f"-> {big}"
    assert "secret" not in files and "password" not in files.values()
    assert files["dangling"].endswith("nowhere") and "loop" in files
    for name in ("absolute.py", "folder"):
        assert (snapshot.path / name).resolve().is_relative_to(snapshot.path)


def test_submodules_are_copied_and_other_repositories_inside_are_not(repo, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    put(other, "lib.py", "submodule")
    git(other, "add", ".")
    git(other, "commit", "-qm", "one")
    git(repo, "submodule", "add", "-q", str(other), "sub module")
    shutil.copytree(other, repo / "nested")
    put(repo, "sub module/lib.py", "changed")
    files = written(taken(repo))
    assert files["sub module/lib.py"] == "changed" and not any(name.startswith("nested") for name in files)
    inside = taken(repo / "sub module", runs=repo / "runs")
    assert set(written(inside)) == {"lib.py"} and inside.cwd == inside.path


def test_a_git_worktree_and_a_folder_below(repo, tmp_path):
    git(repo, "worktree", "add", "-q", str(tmp_path / "tree"))
    assert taken(tmp_path / "tree").id == taken(repo).id
    below = taken(repo / "package", runs=repo / "runs")
    assert below.cwd == below.path / "package" and below.id == taken(repo).id
    put(repo, "ignored/x")
    assert taken(repo / "ignored", runs=repo / "runs").cwd == below.path, "that folder is no code"


def test_large_untracked_files_are_refused_by_name(repo, monkeypatch):
    with (repo / "weights.bin").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(UserError, match=r"weights\.bin: is not tracked by git and has 10 MB.*\.gitignore"):
        taken(repo)
    (repo / "weights.bin").rename(repo / "ignored.log")
    taken(repo)
    git(repo, "add", "-f", "ignored.log")
    taken(repo)
    for index in range(11):
        with (repo / f"part{index}").open("wb") as file:
            file.truncate(9_500_000)
    with pytest.raises(UserError, match=r"part.*with it, files that git does not track have more than 100 MB"):
        taken(repo)


def test_runs_kept_in_the_top_folder_itself_do_not_hide_the_code(repo):
    into = repo / "sweep" / "code"
    put(repo, "sweep/0123/plan.json")
    snapshot = take_snapshot(into, repo, (), leave_out=repo)
    assert "a.py" in snapshot.copies and not any(name.startswith("sweep") for name in snapshot.copies)


def test_a_virtual_environment_in_the_worktree_is_not_copied_but_its_packages_are(repo, monkeypatch):
    site = repo / ".venv/lib/site-packages"
    put(site, "installed/__init__.py", "1")
    put(site, "installed/__pycache__/x.pyc", "1")
    put(site, "installed/.env", "1")
    put(site, "single_file.py", "2")
    monkeypatch.syspath_prepend(str(site))
    snapshot = taken(repo, ("installed", "single_file"))
    names = {name for name in snapshot.copies if name.startswith(".packages") or ".venv" in name}
    assert names == {".packages/installed/__init__.py", ".packages/single_file.py"}
    assert snapshot.import_paths[-1] == snapshot.path / ".packages"


def test_an_editable_package_in_src_is_imported_from_the_copy(repo, monkeypatch):
    put(repo, "src/mine/__init__.py", "1")
    monkeypatch.syspath_prepend(str(repo / "src"))
    snapshot = taken(repo, ("mine",))
    assert snapshot.path / "src" in snapshot.import_paths and ".packages" not in str(snapshot.import_paths)


def test_an_editable_package_that_a_hook_finds_is_imported_from_the_copy(repo, monkeypatch):
    """Setuptools installs some editable packages by a finder of its own: ``sys.path`` does not name their folder."""
    put(repo, "src/hooked/__init__.py", "1")
    monkeypatch.setattr(module, "_package_path", lambda package: repo / "src" / package)
    snapshot = taken(repo, ("hooked",))
    assert snapshot.import_paths == (snapshot.path / "src",)


def test_without_git_the_packages_are_copied(tmp_path, monkeypatch):
    put(tmp_path, "task.py", "one")
    put(tmp_path, "other.txt")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in (None, str(tmp_path)):  # no worktree; no git on this machine at all
        if path:
            monkeypatch.setenv("PATH", path)
        snapshot = taken(tmp_path, ("task", "launcher"))
        assert {".packages/task.py", ".packages/launcher/runtime/worker.py"} <= set(snapshot.copies)
        assert "other.txt" not in snapshot.copies and snapshot.cwd == tmp_path


def test_a_package_that_is_not_there_is_named(repo):
    with pytest.raises(UserError, match="package no_such_package"):
        taken(repo, ("no_such_package",))


def test_a_file_changed_while_it_is_copied_is_noticed(repo):
    snapshot = taken(repo)
    put(repo, "a.py", "changed after it was planned")
    with pytest.raises(UserError, match="changed while they were copied"):
        snapshot.write()
    (repo / "a.py").unlink()
    with pytest.raises(UserError, match=r"a\.py: is gone"):
        snapshot.write()
    assert list(snapshot.path.parent.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(repo):
    (repo / "a.py").chmod(0)
    with pytest.raises(UserError, match=r"a\.py: cannot be copied"):
        taken(repo)


def test_two_writers_at_once_leave_one_whole_copy(repo):
    code = (
        "import sys; from pathlib import Path; from launcher.submission.snapshot import take_snapshot\n"
        "s = take_snapshot(Path(sys.argv[1]), Path(sys.argv[2]), ('launcher',), Path(sys.argv[2]) / 'runs')\n"
        "print(s.id, flush=True); sys.stdin.readline(); s.write()"
    )
    into = repo / "runs" / "sweep" / "code"
    into.mkdir(parents=True)
    words = [sys.executable, "-c", code, str(into), str(repo)]
    both = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {process.stdout.readline().strip() for process in both}
    threads = [threading.Thread(target=process.communicate, args=("go\n",)) for process in both]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [process.returncode for process in both] == [0, 0] and len(ids) == 1
    assert [p.name for p in into.iterdir()] == list(ids)
