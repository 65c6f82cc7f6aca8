"""Readability: sizes of files and functions, dense expressions, names of tests, private words."""

import re

import pytest
from code_style import ROOT, conditional_expressions, faults, python_files

FOLDERS = ("furnace_hpc", "tests", "benchmarks", "docs")
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
PAGES = sorted(ROOT.glob("docs/*.md"))
MOST_MODULES = 13


@pytest.mark.parametrize("folder", FOLDERS)
def test_code_is_easy_to_read(folder):
    assert [fault for path in python_files([ROOT / folder]) for fault in faults(path)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_conditional_expressions_are_rare(folder):
    assert conditional_expressions(python_files([ROOT / folder])) <= 12


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_have_no_private_words(page):
    words = r"\b(mend(s|ed)?|anew|lemons?|whoever|stands? twice|gets? over it)\b"
    assert re.findall(words, page.read_text(encoding="utf-8"), re.IGNORECASE) == []


def test_packages_have_few_modules():
    sizes = {
        folder: sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for folder in (ROOT / "furnace_hpc").rglob("*/")
    }
    assert {folder: size for folder, size in sizes.items() if size > MOST_MODULES} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_are_short(page):
    assert page.read_text(encoding="utf-8").count("\n") < 200


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    assert len(text.split()) <= 1300


def test_test_files_have_names_of_their_own():
    """pytest imports them as top-level modules."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def test_the_checker_finds_each_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("code_style.ROOT", tmp_path)
    text = (
        "def test_" + "a" * 50 + '():\n    """One; two."""\n'
        "    b = 1 if c else 2 if d else 3\n    e = [f for f in g if f if b]\n    # lemon\n"
    )
    (tmp_path / "tests").mkdir()
    path = tmp_path / "tests" / "test_x.py"
    path.write_text(text + "    pass\n" * 400)
    found = "\n".join(faults(path))
    for words in (
        "lines, at most 400",
        "lines, at most 60",
        "a semicolon",
        "inside another",
        "two conditions",
        "characters",
        "the word 'lemon'",
    ):
        assert words in found
    assert conditional_expressions([path]) == pytest.approx(1000 * 2 / 405)
