"""The scripts in benchmarks/ import what exists. Most take minutes, so tests do not run them."""

import ast
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[2]
# in this order, as the scripts have them on their path
FOLDERS = (ROOT / "benchmarks", ROOT / "tests" / "support", ROOT)
PEERS = {"datasets", "litdata", "pandas", "torchvision", "webdataset"}  # of the extra `benchmarks`
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of the project. None if it is of another package."""
    for folder in FOLDERS:
        path = folder.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def defined(file: Path) -> set[str]:
    """Names that a module has after it is imported."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name for alias in node.names)
    return found


@cache
def is_installed(package: str) -> bool:
    """Whether a package exists outside this project. pytest adds folders of tests to the path."""
    paths = [path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests")]
    return package in sys.stdlib_module_names or bool(PathFinder.find_spec(package, paths))


def missing(script: Path) -> list[str]:
    """Modules and names that a script imports and that do not exist."""
    found = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            file, top = file_of(module), module.partition(".")[0]
            if file is None:
                is_known = file_of(top) is None and (top in PEERS or is_installed(top))
                found += [] if is_known else [f"{script.name}:{node.lineno}: {module}"]
            elif name and name not in defined(file) and not file_of(f"{module}.{name}"):
                found.append(f"{script.name}:{node.lineno}: {module}.{name}")
    return found


def test_all_imports_of_a_benchmark_exist():
    assert len(SCRIPTS) > 40
    assert [problem for script in SCRIPTS for problem in missing(script)] == []


def test_a_missing_import_is_found(tmp_path):
    script = tmp_path / "one.py"
    script.write_text("import json\nfrom test_zero import A\nfrom record import write, absent\n")
    assert missing(script) == ["one.py:2: test_zero", "one.py:3: record.absent"]
