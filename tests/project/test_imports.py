"""What each package may import, and the libraries that the login node does not load."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from login_study import command, pack, without_controller, write_grid

import furnace_hpc

PACKAGE = Path(furnace_hpc.__file__).resolve().parent
HEAVY = (
    "torch",
    "deepspeed",
    "transformers",
    "librosa",
    "numba",
    "sklearn",
    "matplotlib",
    "polars",
    "pandas",
)
# package -> packages that it may import
MAY = {
    "console": {"host", "config"},
    "host": set(),
    "config": {"host"},
    "runs": {"host", "config"},
    "slurm": {"host", "config", "runs"},
    "monitor": {"host", "config", "runs", "slurm"},
    "launch": {"host", "config", "runs", "slurm", "monitor"},
    "drills": {"host", "config", "runs", "slurm", "monitor", "launch"},
    "diagnostics": {"host", "config", "runs", "slurm", "monitor", "launch"},
    "tables": {"host", "config", "runs"},
    "trackers": {"host", "config", "runs", "tables"},
    "api": {"host", "config", "runs", "slurm", "monitor", "launch", "tables", "trackers"},
    "data": {"console", "host", "config"},
    "model": {"config", "data"},
    "engine": {"host", "config", "runs", "data", "model"},
    "inference": {"host", "config", "runs", "data", "model", "engine"},
    "checks": {"host", "config", "runs", "data", "model", "engine"},
    "serving": {"config", "tables", "inference"},
    "publishing": {"host", "config", "runs", "tables", "data", "inference"},
    "commands": {
        "api",
        "cli",  # as the modules beside it: `python -m furnace_hpc.commands.NAME`
        "console",
        "host",
        "config",
        "runs",
        "slurm",
        "monitor",
        "launch",
        "tables",
        "trackers",
        "publishing",  # inside functions, as it loads torch
        "serving",  # the same
    },
}
LOGIN_PACKAGES = (
    "console",
    "host",
    "config",
    "runs",
    "slurm",
    "monitor",
    "launch",
    "drills",
    "diagnostics",
    "tables",
    "trackers",
    "commands",
)
LAZY = {  # on the compute node, inside a function
    ("launch/rank_main.py", "engine"),
    ("launch/local_ranks/server.py", "engine"),
}
SUBMITIT = {"launch/slurm_array.py"}
COMMANDS = (
    "new",
    "submit",
    "aggregate",
    "cli",
    "options",
    "completion",
    "schema",
    "check",
    "train",
    "pack",
    "status",
    "cancel",
    "follow_up",
    "drill",
    "doctor",
)
LOGIN = [name for name in (*COMMANDS, "export", "predict") if (PACKAGE / f"{name}.py").exists()]


@cache
def modules(*packages: str) -> tuple[Path, ...]:
    return tuple(path for package in packages for path in sorted((PACKAGE / package).rglob("*.py")))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions, but not for typing."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def loaded_after(*names: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after importing these."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_login_node_imports_nothing_heavy():
    """One interpreter imports all of it, and names the module that loads a heavy one first."""
    commands = [f"furnace_hpc.{name}" for name in LOGIN]
    assert len(commands) > 10
    packages = {package: [name_of(path) for path in modules(package)] for package in LOGIN_PACKAGES}
    assert min(len(names) for names in packages.values()) > 2
    names = [*commands, *(name for names in packages.values() for name in names)]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    loaded = {module.partition('.')[0] for module in sys.modules}\n"
        "    if found := loaded & set(sys.argv[1].split()): sys.exit(f'{name} loads {found}')"
    )
    command = [sys.executable, "-c", code, " ".join(HEAVY), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("cluster", ["local", "a100"])
def test_a_dry_run_loads_no_numpy_and_nothing_heavy(tmp_path, cluster):
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    code = (
        "import sys\nfrom furnace_hpc.submit import main\n"
        "main(grid='study.yaml', cluster=sys.argv[1], dry_run=True)\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cluster],
        cwd=tmp_path,
        env=without_controller(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "pydantic" in loaded
    assert loaded & {*HEAVY, "numpy", "scipy"} == set()


def test_help_does_not_import_submitit(tmp_path):
    assert command("submit", tmp_path, "--help").returncode == 0
    assert "submitit" not in loaded_after("furnace_hpc.submit")


def test_submitit_is_imported_in_one_file():
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules(".")
        if any(n.split(".")[0] == "submitit" for n in imported(path))
    }
    assert users == SUBMITIT


def test_deepspeed_is_imported_only_in_the_engine():
    users = [
        path.relative_to(PACKAGE)
        for path in modules(".")
        if any(n.split(".")[0] == "deepspeed" for n in imported(path))
    ]
    assert users
    assert {path.parts[0] for path in users} == {"engine"}


def test_host_imports_only_the_standard_library():
    """It runs with the node's own Python, before any package can be loaded."""
    for path in modules("host"):
        for name in imported(path):
            assert name.split(".")[0] in sys.stdlib_module_names or name.startswith(
                "furnace_hpc.host"
            ), (path, name)


def edges() -> set[tuple[str, str]]:
    """(file, package or command that it imports) within the package."""
    found = set()
    for path in modules("."):
        here = str(path.relative_to(PACKAGE))
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "furnace_hpc" and len(parts) > 1:
                found.add((here, parts[1]))
    return found


def test_packages_import_in_one_direction():
    violations = []
    for path, target in sorted(edges()):
        package = path.split("/")[0]
        if package in MAY and target not in MAY[package] | {package} and (path, target) not in LAZY:
            violations.append(
                f"{path} imports {target}: {package} may import {sorted(MAY[package]) or 'nothing'}"
            )
    assert not violations, "\n".join(violations)


def test_imports_have_no_circle():
    names = {name_of(path): path for path in modules(".")}
    imports = {
        name: {_module(target, names) for target in imported(path)} - {None, name}
        for name, path in names.items()
    }
    imports["furnace_hpc.launch.rank_main"] -= {
        "furnace_hpc.engine.loop",
        "furnace_hpc.engine.ranks.distributed",
    }
    finished = set()
    for start in names:
        _walk(start, [], imports, finished)


def _module(name: str, names: dict[str, Path]) -> str | None:
    while name and name not in names:
        name = name.rpartition(".")[0]
    if name and names[name].name != "__init__.py":
        return name
    return None


def _walk(name: str, above: list[str], imports: dict[str, set], finished: set) -> None:
    assert name not in above, " -> ".join([*above[above.index(name) :], name])
    if name in finished:
        return
    for target in sorted(imports.get(name, ())):
        _walk(target, [*above, name], imports, finished)
    finished.add(name)


def test_training_needs_no_librosa():
    """It loads numba and llvmlite (64 MB, 1.5 s). Only packing and predicting compute features."""
    names = {name_of(path): path for path in modules(".")}
    reach = {name for name, path in names.items() if "librosa" in _top_level(path)}
    assert reach == {"furnace_hpc.data.decode.features"}
    imports = {name: {_module(t, names) for t in imported(path)} for name, path in names.items()}
    while more := {name for name, found in imports.items() if name not in reach and found & reach}:
        reach |= more
    assert "furnace_hpc.pack" in reach
    training = ("engine", "model", "launch", "runs", "data.loading", "train", "submit", "aggregate")
    assert [
        name for name in reach if name.startswith(tuple(f"furnace_hpc.{part}" for part in training))
    ] == []


def _top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_statistics_import_no_table():
    """They are pure functions, and the other modules of `tables` import them."""
    allowed = tuple(f"furnace_hpc.{name}" for name in ("config", "host", "runs"))
    found = [
        (path.name, name)
        for path in modules("tables/statistics")
        for name in imported(path)
        if name.startswith("furnace_hpc.")
        and not name.startswith((*allowed, "furnace_hpc.tables.statistics"))
    ]
    assert len(modules("tables/statistics")) > 5
    assert found == []


def test_every_package_has_a_rule_and_a_docstring():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == {*MAY}
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
        assert docstring is not None
        assert docstring.count(".") >= 2, folder
    assert edges() >= LAZY
    rank_main = ast.parse((PACKAGE / "launch" / "rank_main.py").read_text())
    at_top = {node.module for node in rank_main.body if isinstance(node, ast.ImportFrom)}
    assert "furnace_hpc.runs.folder" in at_top
    assert not [module for module in at_top if module.startswith("furnace_hpc.engine")]


def test_torch_stays_in_the_computing_packages():
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in modules(".")
        if any(n.split(".")[0] == "torch" for n in imported(path))
    }
    assert users
    assert users <= {"model", "engine", "data", "inference", "checks"}
