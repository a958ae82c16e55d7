"""The rules of the house: who may import whom, what stands at the top, what the README promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("launcher", "vlm", "sweeps", "slurm")
TOP_LEVEL = {
    *PACKAGES, "conf", "tests", "pyproject.toml", "constraints.txt", "README.md", "Makefile", "CHANGELOG.md",
    "CONTRIBUTING.md", "LICENSE", ".ci", ".gitignore",
}  # fmt: skip
COMMANDS = ("launcher", "launcher.run", "vlm", "sweeps", "slurm")

ENTRIES = (
    "launcher.run", "launcher.__main__", "launcher.requeue", "launcher.successor", "launcher.runtime.worker",
    "launcher.runtime.checkup", "launcher.runtime.pack.worker", "sweeps.bench.member", "sweeps.bench.pack",
    "hydra_plugins.seemore", "sweeps.bench.requeue", "sweeps.bench.save",
    "sweeps.study", "sweeps.study.worker",
)  # fmt: skip
"""Where a process of ours begins: they hand the environment on."""

# A module may import what starts with one of these; the first rule that fits a module holds.
MAY_IMPORT = {
    "launcher.runtime": ("launcher.runtime",),
    "launcher": ("launcher",),
    "vlm": ("vlm", "launcher.runtime"),
    "sweeps.bench": ("sweeps", "launcher", "vlm"),
    "sweeps": ("sweeps", "launcher"),
    "slurm": ("slurm",),
}
FOREIGN = {"vlm": ("hydra", "submitit", "omegaconf"), "launcher.runtime": ("hydra", "submitit", "omegaconf")}


def modules() -> dict[str, Path]:
    """Name and file of every module of ours."""
    files = (file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py"))
    names = {".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    return {name.replace("launcher.plugin.hydra_plugins", "hydra_plugins"): file for name, file in names.items()}


MODULES = modules()


def imports(file: Path, top_only: bool = False) -> Iterator[str]:
    """Modules that ``file`` imports; with ``top_only`` those that importing it imports."""
    tree = ast.parse(file.read_text())
    nodes = _at_import_time(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def _at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _at_import_time(node)


def _ours(name: str) -> bool:
    return name.partition(".")[0] in (*PACKAGES, "conf", "tests")


def _rule(module: str) -> str | None:
    return next((rule for rule in MAY_IMPORT if module == rule or module.startswith(rule + ".")), None)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if _rule(m)))
def test_imports_only_what_its_room_may(module):
    rule = _rule(module)
    found = set(imports(MODULES[module]))
    strangers = {n for n in found if _ours(n) and not n.startswith(tuple(MAY_IMPORT[rule]))}
    assert not strangers, f"{module} may import {MAY_IMPORT[rule]}, not {strangers}"
    foreign = {n for n in found if n.startswith(FOREIGN.get(rule, ()))} if FOREIGN.get(rule) else set()
    assert not foreign, f"{module} imports {foreign}"


def test_sweeps_imports_torch_and_vlm_inside_functions_only():
    for name, file in MODULES.items():
        if name.startswith("sweeps") and name != "sweeps.bench.plain":  # the plain model is one: imported by functions
            heavy = {n for n in imports(file, top_only=True) if n.startswith(("torch", "vlm", "pandas"))}
            assert not heavy, f"{name} imports {heavy} at its top"


def test_no_import_cycles():
    graph = {name: {n for n in imports(file, top_only=True) if n in MODULES} for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    "module",
    [
        "launcher.run",
        "launcher.__main__",
        "launcher.plan",
        "launcher.drill.command",
        "launcher.runtime.worker",
        "launcher.runtime.job",
        "vlm.config",
        "sweeps.__main__",
        "vlm.__main__",
    ],
)
def test_importing_loads_neither_torch_nor_pandas(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["status", "--help"], ["status", "runs"], ["status", "runs", "--json"]])
def test_status_loads_neither_hydra_nor_pydantic(words, tmp_path):
    (tmp_path / "runs" / "demo" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "a" / "plan.json").write_text("{}")
    heavy = ("hydra", "omegaconf", "pydantic", "torch", "pandas", "numpy", "submitit", "rich")
    code = f"""if True:
        import sys, launcher.__main__ as door
        try:
            door.main({words})
        except SystemExit:
            pass
        print([name for name in {heavy} if name in sys.modules])"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_only_the_named_things_stand_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert {line.partition("/")[0] for line in tracked.splitlines()} <= TOP_LEVEL


def test_every_package_has_a_readme_and_nothing_is_called_utils():
    for package in PACKAGES:
        assert (REPOSITORY / package / "README.md").exists()
    assert not [m for m in MODULES if m.rpartition(".")[2] in ("utils", "util", "helpers", "common", "misc")]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_public_names_are_documented_and_functions_fit_a_screen(module):
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{module}.{node.name} has {length} lines"
    for node in _public(tree):
        assert ast.get_docstring(node), f"{module}: {node.name} has no docstring"
    assert MODULES[module].read_text().count("\n") <= 350


def _public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def test_only_world_is_given_the_environment_and_only_rundir_names_a_runs_files():
    names = r"(plan|status|summary)\.json|attempts\.jsonl|(metrics|samples|losses_log|timing_logs)\.csv"
    for module, file in MODULES.items():
        code = "\n".join(_code_strings(file))
        if module != "launcher.runtime.rundir":
            assert not re.search(rf"^({names})$", code, re.MULTILINE), f"{module} names a file of a run"
        reads = re.search(r"os\.environ|os\.getenv", file.read_text())
        assert not reads or module in ENTRIES, f"{module} reads the environment"


def _code_strings(file: Path) -> Iterator[str]:
    """String constants of the code, docstrings left out."""
    tree = ast.parse(file.read_text())
    documents = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


SLURMS = ("sbatch", "squeue", "sacct", "sacctmgr", "scontrol", "scancel", "sinfo", "srun", "salloc", "sstat", "sprio")
BATCH_SCRIPTS = ("launcher.submission.batch", "launcher.doctor.trial")
"""They write the text of a batch script, which calls srun and, without a scontrol where Python runs, scontrol."""


def _commands(tree: ast.AST) -> Iterator[str]:
    """First words of what may be a command to run: of lists and tuples of words, and of what a call is given first."""
    for node in ast.walk(tree):
        first = node.elts if isinstance(node, ast.List | ast.Tuple) else node.args if isinstance(node, ast.Call) else []
        if first and isinstance(first[0], ast.Constant) and isinstance(first[0].value, str):
            is_lookup = isinstance(node, ast.Call) and ast.unparse(node.func) == "shutil.which"
            yield "" if is_lookup or not first[0].value.split() else first[0].value.split()[0].rpartition("/")[2]


def test_only_slurm_cli_calls_slurms_commands():
    for module, file in MODULES.items():
        if module.startswith("launcher") and module not in ("launcher.slurm_cli", *BATCH_SCRIPTS):
            found = set(_commands(ast.parse(file.read_text()))) & set(SLURMS)
            assert not found, f"{module} calls {found}: Slurm's commands are called in launcher/slurm_cli.py"


@pytest.mark.parametrize(
    "code", ["run(['squeue', '-h'])", "os.system('sbatch x.sh')", "words = ('/usr/bin/scancel', job)", "f('srun')"]
)
def test_a_command_of_slurms_is_found_however_it_is_called(code: str):
    assert set(_commands(ast.parse(code))) & set(SLURMS)


READMES = sorted(p for p in REPOSITORY.glob("*.md")) + sorted(
    REPOSITORY / package / "README.md" for package in PACKAGES
)


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_lead_somewhere(readme):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text()):
        assert target.startswith("http") or (readme.parent / target).exists(), f"{readme.name}: {target}"


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_commands_of_a_readme_exist(readme):
    text = readme.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module in COMMANDS or module in ("pytest", "venv"), f"{readme.name}: python -m {module}"
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"^(?:\$ )?make ([\w-]+)", text, re.MULTILINE):
        assert target in targets, f"{readme.name}: make {target}"
    for named in re.findall(r"`((?:launcher|vlm|sweeps|slurm|conf|tests)/[\w./-]+)`", text):
        assert (REPOSITORY / named).exists(), f"{readme.name}: {named}"
