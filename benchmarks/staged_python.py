"""Count the file system calls that imports of ranks make in the shared Python environment.

    python benchmarks/staged_python.py [--nodes 64] [--per-node 8]

strace counts the calls with a path (open, stat, readlink ...) and listings of folders while one
rank imports the training engine. They are counted by folder: the shared environment with its
archive, the code snapshot, and the copy on the node's own disk. Three ranks are measured: one with
the shared Python, the first of a node, which unpacks the archive, and another one of that node. The
sums of a job are computed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from furnace_hpc.launch.python_archive import find_environment, make_archive

IMPORTS = "import furnace_hpc.engine.loop, furnace_hpc.launch.rank_main"
HOST_PYTHON = "/usr/bin/python3"  # on each node's own disk
REPOSITORY = Path(__file__).resolve().parent.parent
NAMED = re.compile(r'"(/[^"]*)"|<(/[^>]*)>')
Row = dict[str, Any]


def count(
    command: list[str],
    variables: dict[str, str],
    folders: dict[str, list[str]],
    before: Callable[[], None],
) -> Row:
    """Run a rank without and with strace. Return its seconds, and its calls by kind of folder.

    Args:
        command: of the rank.
        variables: in addition to this process's environment.
        folders: kind -> folders.
        before: called before each run.
    """
    environment = os.environ | variables
    before()
    since_s = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    found: Row = {"seconds": round(time.perf_counter() - since_s, 1)}
    before()
    with tempfile.TemporaryDirectory() as place:
        trace = Path(place) / "trace"
        traced = ["strace", "-f", "-qq", "-y", "-e", "trace=%file,getdents64", "-o", str(trace)]
        subprocess.run([*traced, *command], env=environment, check=True, capture_output=True)
        found |= dict.fromkeys((*folders, "other"), 0)
        with trace.open(errors="replace") as lines:
            for line in lines:
                if match := NAMED.search(line):
                    found[kind_of(match[1] or match[2], folders)] += 1
    return found


def kind_of(path: str, folders: dict[str, list[str]]) -> str:
    """The first kind whose folders contain a path."""
    for kind, places in folders.items():
        if any(path == place or path.startswith(f"{place}/") for place in places):
            return kind
    return "other"


def measure(work: Path) -> list[Row]:
    """Count for the three ranks."""
    scratch, code = work / "scratch", work / "code"
    shutil.copytree(REPOSITORY / "furnace_hpc", code / "furnace_hpc")
    since_s = time.perf_counter()
    archive = make_archive(sys.executable, work)
    print(f"archive: {archive.stat().st_size / 2**30:.2f} GiB", file=sys.stderr)
    print(f"archived in {time.perf_counter() - since_s:.0f} s", file=sys.stderr)
    parts = find_environment(sys.executable).parts
    folders = {
        "copy": [str(scratch)],
        "code": [str(code)],
        "shared": [str(archive.parent), *sorted(map(str, parts))],
    }
    variables = {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "DS_ACCELERATOR": "cpu"}
    staged = variables | {"FURNACE_PYTHON_ARCHIVE": str(archive), "FURNACE_SCRATCH": str(scratch)}
    rest = ["-S", str(code / "furnace_hpc/host/batch.py"), "launch", sys.executable, "-c", IMPORTS]

    def empty() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()

    shared_command, staged_command = [sys.executable, *rest], [HOST_PYTHON, *rest]
    return [
        {"rank": "shared Python"} | count(shared_command, variables, folders, empty),
        {"rank": "first of a node"} | count(staged_command, staged, folders, empty),
        {"rank": "another of the node"} | count(staged_command, staged, folders, lambda: None),
    ]


def sums(rows: list[Row], nodes: int, per_node: int) -> list[Row]:
    """Calls of a job in the shared environment and its archive, without the code."""
    before, first, other = (row["shared"] for row in rows)
    return [
        {"job": "shared Python", "calls": nodes * per_node * before},
        {"job": "staged Python", "calls": nodes * (first + (per_node - 1) * other)},
    ]


def main() -> None:
    """Measure and record."""
    import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--per-node", type=int, default=8)
    options = parser.parse_args()
    record.begin()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name))
    size = {"nodes": options.nodes, "per_node": options.per_node}
    rows += [row | size for row in sums(rows, options.nodes, options.per_node)]
    record.write("staged_python", rows, json.dumps(size))


if __name__ == "__main__":
    main()
