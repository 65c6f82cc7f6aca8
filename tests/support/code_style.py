"""Find code that is hard to read: python tests/support/code_style.py [FILES OR FOLDERS]."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_TEST_NAME = 400, 60, 50
# Words that only this project used for things with a common name, and phrases that read badly.
PRIVATE = re.compile(
    r"\b(mend(s|ed|ing)?|anew|lemons?|whoever|nobody|somebody|told|stands? twice"
    r"|so (many|long) (as|of)|gets? over it"
    r"|by no fault|for ever|from elsewhere|goes on|go on|went on|half-way)\b",
    re.IGNORECASE,
)
# Packed texts of TriDigits, the list above, and the name of a user.
EXEMPT = ("plan.py", "code_style.py", "test_code_style.py", "test_templates.py")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def faults(path: Path) -> Iterator[str]:
    """What should be simpler in one Python file, as `file:line: fault`."""
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(ROOT)
    if text.count("\n") > LONGEST_FILE:
        yield f"{place}:1: {text.count(chr(10))} lines, at most {LONGEST_FILE}"
    is_test = place.parts[0] == "tests"
    yield from (f"{place}:{fault}" for fault in _read(text, is_test)[0])
    for number, line in enumerate(text.splitlines(), 1):
        if path.name not in EXEMPT and (found := PRIVATE.search(line)):
            yield f"{place}:{number}: the word {found.group()!r}"


@cache
def _read(text: str, is_test: bool) -> tuple[list[str], int]:
    """Faults as `line: fault`, and the number of conditional expressions."""
    nodes = list(ast.walk(ast.parse(text)))
    found = [f"{node.lineno}: {fault}" for node in nodes for fault in _faults_of(node, is_test)]
    return found, sum(isinstance(node, ast.IfExp) for node in nodes)


def _faults_of(node: ast.AST, is_test: bool) -> Iterator[str]:
    if isinstance(node, FUNCTIONS):
        yield from _faults_of_function(node, is_test)
    if isinstance(node, ast.IfExp) and any(
        isinstance(child, ast.IfExp) for child in (node.test, node.body, node.orelse)
    ):
        yield "a conditional expression inside another"
    if isinstance(node, COMPREHENSIONS) and any(len(loop.ifs) > 1 for loop in node.generators):
        yield "a comprehension with two conditions"


def _faults_of_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, is_test: bool
) -> Iterator[str]:
    lines = node.end_lineno - node.lineno + 1
    if lines > LONGEST_FUNCTION:
        yield f"{node.name} has {lines} lines, at most {LONGEST_FUNCTION}"
    if ";" in (ast.get_docstring(node) or ""):
        yield f"a semicolon in the docstring of {node.name}"
    if is_test and node.name.startswith("test_") and len(node.name) > LONGEST_TEST_NAME:
        yield f"{node.name} has {len(node.name)} characters, at most {LONGEST_TEST_NAME}"


def conditional_expressions(paths: list[Path]) -> float:
    """Conditional expressions per 1,000 lines."""
    texts = [path.read_text(encoding="utf-8") for path in paths]
    places = [path.relative_to(ROOT) for path in paths]
    found = sum(
        _read(text, place.parts[0] == "tests")[1] for text, place in zip(texts, places, strict=True)
    )
    return 1000 * found / max(1, sum(text.count("\n") for text in texts))


def python_files(places: list[Path]) -> list[Path]:
    found = [
        path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    return sorted(path.resolve() for path in found)


if __name__ == "__main__":
    files = python_files([Path(name) for name in sys.argv[1:]] or [ROOT / "furnace_hpc"])
    for file in files:
        for fault in faults(file):
            print(fault)
    print(
        f"{conditional_expressions(files):.1f} conditional expressions per 1,000 lines, at most 12"
    )
