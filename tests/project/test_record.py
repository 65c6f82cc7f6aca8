"""benchmarks/record.py: a result names its commit, or is not written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORD = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import record
record.begin()
print("the work", flush=True)
exec(sys.argv[1])
record.write("mine", [{"figure": 1}])
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A commit of this tree as it is now."""
    if not shutil.which("git"):
        pytest.skip("no git here")
    for name in ("furnace_hpc", "benchmarks", "ds_configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(place: Path, *words: str) -> str:
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    return subprocess.run(
        ["git", *who, *words], cwd=place, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(place: Path) -> None:
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "one")


def benchmark(
    place: Path, meanwhile: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", RECORD, meanwhile]
    environment = os.environ | {"PYTHONPATH": str(place)} | variables
    return subprocess.run(
        words, cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_commit_is_recorded(clone):
    head = git(clone, "rev-parse", "HEAD")
    done = benchmark(clone)
    assert (done.returncode, done.stdout) == (0, "the work\nfigure 1\n"), done.stderr
    assert done.stderr == f"recording for commit {head}\n"
    assert json.loads((clone / "benchmarks/results/mine.json").read_text())["commit"] == head
    assert benchmark(clone).returncode == 0  # another benchmark's new result is no change


@pytest.mark.parametrize(
    "name", ["furnace_hpc/cli.py", "benchmarks/elastic.py", "tests_of_mine.py"]
)
def test_uncommitted_changes_are_refused(clone, name):
    with (clone / name).open("a") as file:
        file.write("# changed\n")
    done = benchmark(clone)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: the tree has uncommitted changes ({name}), ")
    assert "Commit first, or set RECORD=no" in done.stderr
    done = benchmark(clone, RECORD="no")
    assert (done.returncode, done.stdout) == (0, "the work\nfigure 1\n")
    assert not (clone / "benchmarks/results/mine.json").exists()


@pytest.mark.parametrize("git_too", [False, True])
def test_changes_during_the_run_write_no_file(clone, git_too):
    meanwhile = 'open("furnace_hpc/cli.py", "a").write("# changed\\n")'
    if git_too:
        who = "git -c user.name=me -c user.email=me@here"
        meanwhile += f'; import os; os.system("{who} commit --quiet --all --message two")'
    done = benchmark(clone, meanwhile)
    assert (done.returncode, done.stdout) == (2, "the work\nfigure 1\n")
    problem = {True: "when the benchmark began", False: "uncommitted changes"}
    assert problem[git_too] in done.stderr
    assert not (clone / "benchmarks/results/mine.json").exists()


def test_outside_a_checkout_nothing_is_recorded(clone):
    shutil.rmtree(clone / ".git")
    done = benchmark(clone)
    assert done.returncode == 2
    assert "the commit is unknown" in done.stderr


def test_every_benchmark_that_records_asks_first():
    writing = [
        path for path in (ROOT / "benchmarks").glob("*.py") if "record.write(" in path.read_text()
    ]
    assert len(writing) > 15
    for path in writing:
        main = path.read_text().partition("\ndef main(")[2].partition("\n\n\n")[0]
        assert "    record.begin()\n" in main, path
    for result in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert "+dirty" not in json.loads(result.read_text())["commit"], result
