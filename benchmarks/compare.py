"""Compare the speed of this tree with that of an older commit: ratios with intervals.

    make bench                  against the newest release
    make bench BASE=COMMIT      against a commit or tag
    python benchmarks/compare.py --base COMMIT --cases "status of 1,000 runs" --fail-over 1.1

The commit is checked out into a temporary worktree of git. Both trees run in the same environment.
Each case is a process, and the trees take turns: new, base, base, new, and so on. A ratio is the
median over the pairs of new / base. Its interval (99 %) is that of the sign test, which assumes
nothing about the noise. A case ends when the interval is narrow, or its time is over.

If the tree has no uncommitted changes, a line is added to results/history.jsonl, and
draw_history.py draws it. The exit code is 0, except with --fail-over.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, NoReturn

import draw_history
import record
from compare_cases import CASES, Case, CaseFailed, Measured, Side
from scipy import stats

from furnace_hpc.runs.code import git

ROOT = Path(__file__).parent.parent
HISTORY = record.RESULTS / "history.jsonl"
CONFIDENCE = 0.99  # of each interval, because a comparison has some twenty of them
MIN_PAIRS, MAX_PAIRS = 8, 60  # with fewer than 8 there is no interval of 99 %
NARROW = 1.04  # upper end : lower end
CLOCKS = ("cpu", "wall")
Pair = tuple[Mapping[str, Measured], Mapping[str, Measured]]


class Ratio(NamedTuple):
    """How much longer the new tree takes: the median over pairs, and its interval."""

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """What the interval shows."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "no difference found"


class Found(NamedTuple):
    """What was found about one measure: a ratio, or why there is none."""

    measure: str
    clock: str  # cpu or wall; empty if there is no ratio
    ratio: Ratio | None = None
    missing: str = ""


def main() -> None:
    """Compare the trees, print the ratios, and add them to the history."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # then the worktree is removed
    cases = _chosen(options.cases)
    try:
        commit = _commit_of(options.base)
        why_not = record.find_problem() if record.is_wanted() else "RECORD=no"
        if why_not:
            print(f"not added to the history: {why_not}", file=sys.stderr, flush=True)
        head = git("rev-parse", "HEAD").strip()
        print(f"this tree against {options.base or 'release'} ({commit[:12]})", flush=True)
        with tempfile.TemporaryDirectory(prefix="fbench") as folder, _worktree(commit) as base:
            sides = (Side("new", ROOT, Path(folder) / "n"), Side("base", base, Path(folder) / "b"))
            found = compare(cases, sides, options.limit_s)
    except KeyboardInterrupt:
        sys.exit(130)
    if not why_not and not record.find_problem():
        add_to_history(HISTORY, {"commit": head, "base": commit, **_place()}, found)
        draw_history.draw(HISTORY, draw_history.PICTURE)
    sys.exit(exit_code(found, options.fail_over))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="", help="commit or tag [the newest release tag]")
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--cases", nargs="+", default=[], help=f"names of cases [all]: {names}")
    parser.add_argument(
        "--limit-s", type=float, default=60, help="seconds per case, after the first 8 pairs [60]"
    )
    parser.add_argument(
        "--fail-over",
        type=float,
        metavar="RATIO",
        help="exit with 1 if a measure is found slower by more than this ratio, or a case fails",
    )
    return parser.parse_args()


def _chosen(names: Sequence[str]) -> list[Case]:
    known = {case.name: case for case in CASES}
    if unknown := [name for name in names if name not in known]:
        _refuse(f"no case {unknown[0]!r}. Choose from: {', '.join(known)}")
    return [known[name] for name in names or known]


def _commit_of(base: str) -> str:
    """The commit of a name. Exits with 2 if there is none."""
    try:
        name = base or git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*").strip()
        return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except (OSError, subprocess.SubprocessError):
        problem = f"git knows no commit {base!r}" if base else "there is no release tag"
        _refuse(f"{problem}. Name a commit or tag: make bench BASE=NAME")


def _refuse(problem: str) -> NoReturn:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """A temporary checkout of a commit. It is removed also after an interrupt."""
    with tempfile.TemporaryDirectory(prefix="fbase") as folder:
        tree = Path(folder) / "tree"
        try:
            _git("add", "--detach", "--quiet", str(tree), commit)
            yield tree
        finally:
            # another Ctrl-C must not stop the removal
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            _git("remove", "--force", str(tree))
            signal.signal(signal.SIGINT, before)


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), "worktree", *words], check=True)


def _place() -> dict[str, Any]:
    return {"unix_s": round(time.time()), "cores": len(os.sched_getaffinity(0))}


def compare(cases: Sequence[Case], sides: tuple[Side, Side], limit_s: float) -> list[Found]:
    """Measure each case, and print what was found."""
    for side in sides:
        side.place.mkdir()
    found: list[Found] = []
    width = max(len(case.name) for case in cases)
    for case in cases:
        print(f"{case.name:{width}} ...", file=sys.stderr, flush=True)
        for one in of_case(case, sides, limit_s):
            print(describe(one), flush=True)
            found.append(one)
    return found


def of_case(case: Case, sides: tuple[Side, Side], limit_s: float) -> list[Found]:
    """Measure one case in both trees. The first process of each, which compiles, does not count."""
    for side in sides:
        try:
            case.measure(side)
        except CaseFailed as error:
            what = "not in base" if side is sides[1] else "fails in this tree"
            return [Found(case.name, "", missing=f"{what}: {error}")]
    try:
        return ratios(measure_pairs(lambda at: case.measure(sides[at]), limit_s))
    except CaseFailed as error:
        return [Found(case.name, "", missing=f"fails sometimes: {error}")]


def measure_pairs(
    measure: Callable[[int], Mapping[str, Measured]],
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Pair]:
    """Measure in turn until all intervals are narrow, or the time is over.

    Args:
        measure: returns the measures of the new tree (0) or the base (1).
        limit_s: seconds for all pairs after the first MIN_PAIRS.
        clock: returns the time in seconds for the limit.
    """
    pairs: list[Pair] = []
    deadline_s = clock() + limit_s
    while len(pairs) < MAX_PAIRS:
        order = (0, 1) if len(pairs) % 2 == 0 else (1, 0)
        measured = {at: measure(at) for at in order}
        pairs.append((measured[0], measured[1]))
        if len(pairs) < MIN_PAIRS:
            continue
        # Wall times are too noisy for this decision, if there are CPU times.
        shown = ratios(pairs)
        wanted = [one for one in shown if one.clock == "cpu"] or shown
        if clock() >= deadline_s or all(_is_narrow(one.ratio) for one in wanted):
            break
    return pairs


def _is_narrow(ratio: Ratio | None) -> bool:
    return ratio is not None and ratio.high <= NARROW * ratio.low


def ratios(pairs: Sequence[Pair]) -> list[Found]:
    """The ratios of all measures of these pairs."""
    found = []
    for measure in pairs[0][0]:
        for at, clock in ((1, "cpu"), (0, "wall")):
            times = [(new[measure][at], base[measure][at]) for new, base in pairs]
            logs = [math.log(new / base) for new, base in times if new and base]
            if len(logs) == len(pairs):
                found.append(Found(measure, clock, ratio_of(logs)))
    return found


def ratio_of(logs: Sequence[float]) -> Ratio:
    """The median of logarithms of ratios, with the interval of the sign test."""
    test = stats.quantile_test(logs, q=0, p=0.5)
    interval = test.confidence_interval(CONFIDENCE)
    low, high = (float(end) for end in (interval.low, interval.high))
    low = math.exp(low) if math.isfinite(low) else 0.0
    high = math.exp(high) if math.isfinite(high) else math.inf
    return Ratio(math.exp(median(logs)), low, high, len(logs))


def describe(found: Found) -> str:
    """One line: the ratio, its interval, and what it shows."""
    if found.ratio is None:
        return f"{found.measure}: {found.missing}"
    ratio, low, high, pairs = found.ratio
    interval = f"{ratio:5.3f} [{low:5.3f}, {high:5.3f}]"
    return f"{found.measure:38} {found.clock:4}  {interval}  {pairs:2} pairs  {found.ratio.verdict}"


def add_to_history(path: Path, facts: Mapping[str, Any], found: Sequence[Found]) -> None:
    """Append one line: commits, time, number of cores, and a row for each measure."""
    rows = []
    for one in found:
        row: dict[str, Any] = {"measure": one.measure}
        if one.ratio is None:
            row["missing"] = one.missing
        else:
            row |= {"clock": one.clock, "pairs": one.ratio.pairs}
            row |= {name: round(getattr(one.ratio, name), 4) for name in ("ratio", "low", "high")}
        rows.append(row)
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**facts, "rows": rows}) + "\n")


def exit_code(found: Sequence[Found], fail_over: float | None) -> int:
    """0, or 1 if a limit was given and this tree fails a case or is found slower than that."""
    if fail_over is None:
        return 0
    for one in found:
        if one.ratio is None:
            if not one.missing.startswith("not in base"):
                return 1
        elif one.ratio.low > 1 and one.ratio.ratio > fail_over:
            return 1
    return 0


if __name__ == "__main__":
    main()
