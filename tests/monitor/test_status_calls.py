"""Calls of the file system by `furnace status`, counted for a small and a larger grid."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from login_study import begin, end, finish, grid, planned, specs, without_controller

from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder

STATES = ("done", "running", "crashed", "preempted", "new")
FEW, MANY = 1, 6  # seeds. Each state has a run of both variants with each of five seeds
# Calls below the grid's folder of five further runs, one of each state.
MOST = {"open": 11, "os.scandir": 0, "os.listdir": 8, "os.stat": 16}
# The command in a process of its own, because an audit hook stays. There is no audit event for
# os.stat and os.lstat.
COUNTED = """
import functools, json, os, runpy, sys
from collections import Counter

root, calls = sys.argv[1], Counter()

def note(event, arguments):
    if event in ("open", "os.scandir", "os.listdir"):
        count(event, arguments[0])

def count(name, path):
    if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(root):
        calls[name] += 1

def counted(function):
    @functools.wraps(function)
    def call(path, *others, **named):
        count("os.stat", path)
        return function(path, *others, **named)
    return call

os.stat, os.lstat = counted(os.stat), counted(os.lstat)
sys.addaudithook(note)
sys.argv = ["status", "--grid", "study", "--runs-root", root]
try:
    runpy.run_module("furnace_hpc.status", run_name="__main__")
finally:
    print(json.dumps(calls), file=sys.stderr)
"""


def write_runs(root: Path, count: int) -> None:
    """Runs of two variants in all states, as often as asked."""
    seeds = list(range(len(STATES) * count))
    write_submission(planned(root, grid(seeds=seeds)))
    folder = GridFolder(root / "study")
    for number, spec in enumerate(specs(seeds=seeds)):
        match STATES[number % len(STATES)]:
            case "done":
                finish(spec, folder)
            case "running":
                begin(spec, folder)
            case "crashed":
                end(begin(spec, folder), "crash")
            case "preempted":
                end(begin(spec, folder), "stopped", exit_code=85)


def calls(place: Path, count: int) -> Counter[str]:
    root = place / f"runs-{count}"
    write_runs(root, count)
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(root)],
        cwd=place,
        env=without_controller(place) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert f"{2 * len(STATES) * count} runs" in done.stdout
    return Counter(json.loads(done.stderr.splitlines()[-1]))


def test_calls_of_a_further_run(tmp_path):
    """A further run makes at most as many calls as when this test was written."""
    few, many = calls(tmp_path, FEW), calls(tmp_path, MANY)
    groups = 2 * (MANY - FEW)
    assert many["open"] - few["open"] >= groups  # they are counted
    found = {name: (many[name] - few[name]) / groups for name in MOST}
    assert all(found[name] <= most for name, most in MOST.items()), found
