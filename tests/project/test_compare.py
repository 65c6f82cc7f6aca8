"""benchmarks/compare.py: paired ratios of two trees, their history and its picture."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_record import ROOT, commit, git

sys.path.insert(0, str(ROOT / "benchmarks"))

import draw_history
from compare import (
    MAX_PAIRS,
    MIN_PAIRS,
    Found,
    Ratio,
    add_to_history,
    describe,
    exit_code,
    measure_pairs,
    of_case,
    ratio_of,
    ratios,
)
from compare_cases import CASES, Case, CaseFailed, Measured, Side

EQUAL, SLOWER = Ratio(1.01, 0.97, 1.04, 8), Ratio(1.2, 1.15, 1.3, 8)
# Errors of 16 processes in turn, as a noisy machine has them.
NOISE = (0.03, -0.02, 0.4, 0.01, -0.04, 0.02, 0.0, 0.05, -0.03, 0.9, 0.02, -0.01, 0.04, 0.0, -0.02)
NOISE += (0.01,)


class Machine:
    """Processes whose durations are computed. Its clock is the sum of all durations."""

    def __init__(self, new_s: float, base_s: float, noise: tuple[float, ...] = NOISE):
        self.seconds, self.noise = (new_s, base_s), noise
        self.order, self.now_s = [], 0.0

    def measure(self, side: int) -> dict[str, Measured]:
        error = self.noise[len(self.order) % len(self.noise)]
        self.order.append(side)
        took_s = self.seconds[side] * (1 + error)
        self.now_s += took_s
        return {"case": Measured(took_s, took_s / 2)}

    def clock(self) -> float:
        return self.now_s


def test_the_trees_take_turns():
    machine = Machine(1, 1, noise=(0.0,))
    pairs = measure_pairs(machine.measure, 1000, machine.clock)
    assert machine.order == [0, 1, 1, 0] * (MIN_PAIRS // 2)  # equal times: the interval is narrow
    assert len(pairs) == MIN_PAIRS


def test_a_slower_tree_is_found():
    machine = Machine(1.5, 1)
    found = ratios(measure_pairs(machine.measure, 1000, machine.clock))
    assert [one.clock for one in found] == ["cpu", "wall"]
    for one in found:
        assert one.ratio.verdict == "slower"
        assert one.ratio.low < 1.5 < one.ratio.high
        assert one.ratio.ratio == pytest.approx(1.5, rel=0.05)


def test_equal_trees_differ_in_nothing():
    machine = Machine(2, 2)
    for one in ratios(measure_pairs(machine.measure, 1000, machine.clock)):
        assert one.ratio.verdict == "no difference found"


def test_a_noisy_case_ends_with_its_time():
    wild = (0.5, -0.5, 0.3, -0.3, 0.9, -0.6, 0.1)
    machine = Machine(1, 1, wild)
    assert len(measure_pairs(machine.measure, 1e9, machine.clock)) == MAX_PAIRS
    machine = Machine(1, 1, wild)
    pairs = measure_pairs(machine.measure, 30, machine.clock)
    assert MIN_PAIRS < len(pairs) < MAX_PAIRS
    before_last = machine.now_s - sum(times["case"].wall_s for times in pairs[-1])
    assert before_last < 30 <= machine.now_s


def test_the_interval_is_that_of_the_sign_test():
    """Of 8 values the ends are the extremes: outside is 2 / 2^8. Of 12: the second ones."""
    logs = [math.log(1 + n / 100) for n in range(1, 13)]
    assert ratio_of(logs[:8])[1:] == pytest.approx((1.01, 1.08, 8))
    assert ratio_of(logs)[1:] == pytest.approx((1.02, 1.11, 12))
    assert ratio_of(logs[:5])[1:] == (0.0, math.inf, 5)
    assert ratio_of([math.log(2)] * 8).verdict == "slower"
    assert ratio_of([math.log(0.5)] * 8).verdict == "faster"


def test_a_case_that_a_tree_cannot_run(tmp_path):
    sides = (Side("new", ROOT, tmp_path / "n"), Side("base", ROOT, tmp_path / "b"))
    for side in sides:
        side.place.mkdir()

    def words(side: Side) -> list[str]:
        return ["-c", f"import sys; sys.exit({side.name == fails!r} and 'no module')"]

    case = Case("mine", words)
    fails = "base"
    assert of_case(case, sides, 0) == [Found("mine", "", missing="not in base: no module")]
    fails = "new"
    [found] = of_case(case, sides, 0)
    assert describe(found) == "mine: fails in this tree: no module"
    with pytest.raises(CaseFailed, match="FileNotFoundError"):
        Case("files", words, reset=lambda side: (side.place / "lacks").read_text()).measure(
            sides[1]
        )


def test_processes_import_their_own_tree(tmp_path):
    tree, place = tmp_path / "tree", tmp_path / "place"
    (tree / "furnace_hpc").mkdir(parents=True)
    (tree / "furnace_hpc" / "__init__.py").write_text("print('mine')")
    place.mkdir()
    (place / "furnace_hpc.py").write_text("print('that of the working directory')")
    Side("new", tree, place).measure(["-c", "import furnace_hpc"])
    assert (place / "output").read_text() == "mine\n"


def test_a_limit_decides_about_the_exit_code():
    slower, equal = Found("a", "cpu", SLOWER), Found("b", "cpu", EQUAL)
    lacks, fails = Found("c", "", missing="not in base: x"), Found("d", "", missing="fails in this")
    assert exit_code([slower, fails], None) == 0
    assert exit_code([slower, lacks], 1.1) == 1
    assert exit_code([slower, equal, lacks], 1.25) == 0
    assert exit_code([equal, fails], 1.25) == 1


def test_the_history_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    history, picture = tmp_path / "results" / "history.jsonl", tmp_path / "docs" / "history.svg"
    found = [Found("quick", "cpu", EQUAL), Found("quick", "wall", SLOWER)]
    found += [Found("slow", "wall", SLOWER), Found("other", "", missing="not in base: x")]
    for base in ("b" * 40, "c" * 40):
        facts = {"commit": "a" * 40, "base": base, "unix_s": 1, "cores": 2}
        add_to_history(history, facts, found)
    [first, _] = map(json.loads, history.read_text().splitlines())
    assert first["rows"][0] == {
        "measure": "quick",
        "clock": "cpu",
        "pairs": 8,
        "ratio": 1.01,
        "low": 0.97,
        "high": 1.04,
    }
    assert first["rows"][3] == {"measure": "other", "missing": "not in base: x"}
    draw_history.draw(history, picture)
    text = picture.read_text()
    assert "quick (cpu time)" in text
    assert "slow (wall time)" in text
    assert "quick (wall time)" not in text
    assert text.count("aaaaaaa") == 4  # two comparisons below each of two panels
    assert draw_history.COLOURS["slower"] in text
    draw_history.draw(history, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


@pytest.fixture
def two_commits(tmp_path: Path) -> Path:
    """A checkout whose newest commit imports slowly. Its first commit is the release v0.1."""
    if not shutil.which("git"):
        pytest.skip("no git here")
    tree = tmp_path / "tree"
    for name in ("furnace_hpc", "benchmarks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "benchmarks" / "results" / "history.jsonl").unlink(missing_ok=True)
    (tree / ".gitignore").write_text("__pycache__/\n")
    git(tree, "init", "--quiet")
    commit(tree)
    git(tree, "tag", "v0.1")
    with (tree / "furnace_hpc" / "__init__.py").open("a") as file:
        file.write("import time\ntime.sleep(0.1)\n")
    commit(tree)
    return tree


def start(tree: Path, *words: str) -> "subprocess.Popen[str]":
    """compare.py of that tree."""
    return subprocess.Popen(
        [sys.executable, "benchmarks/compare.py", *words],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


IMPORT = ("--cases", "import of furnace_hpc", "--limit-s", "0")


@pytest.mark.slow
def test_two_commits_are_compared(two_commits):
    pytest.importorskip("matplotlib")
    tree = two_commits
    process = start(tree, *IMPORT)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert f"this tree against release ({git(tree, 'rev-parse', 'v0.1')[:12]})" in out
    [line] = (tree / "benchmarks/results/history.jsonl").read_text().splitlines()
    comparison = json.loads(line)
    assert comparison["commit"] == git(tree, "rev-parse", "HEAD")
    assert comparison["base"] == git(tree, "rev-parse", "v0.1")
    assert [row["clock"] for row in comparison["rows"]] == ["cpu", "wall"]
    for row in comparison["rows"]:
        assert row["measure"] == "import of furnace_hpc"
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["pairs"] >= MIN_PAIRS
    assert (tree / "docs/pictures/history.svg").exists()
    assert len(git(tree, "worktree", "list").splitlines()) == 1
    (tree / "furnace_hpc" / "__init__.py").write_text("")  # not committed
    process = start(tree, "--base", "HEAD", *IMPORT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "not added to the history: the tree has uncommitted changes" in error
    assert (tree / "benchmarks/results/history.jsonl").read_text() == line + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_removes_the_worktree(two_commits, number):
    process = start(two_commits, "--cases", "import of submit", "--limit-s", "1000")
    assert process.stderr.readline() == "import of submit ...\n"
    [_, worktree] = git(two_commits, "worktree", "list").splitlines()
    time.sleep(0.5)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert len(git(two_commits, "worktree", "list").splitlines()) == 1
    assert not Path(worktree.split()[0]).exists()


def test_a_base_that_does_not_exist(tmp_path):
    for words, problem in (
        (["--base", "never"], "git knows no commit 'never'. Name a commit or tag"),
        (["--cases", "mine"], "no case 'mine'. Choose from: import of furnace_hpc, "),
    ):
        process = start(ROOT, *words)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2, error
        assert problem in error


def test_cases_have_names_of_their_own():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) == 9
