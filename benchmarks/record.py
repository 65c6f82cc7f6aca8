"""How every benchmark writes its result: figures, goals, command, versions, machine and commit, in one JSON file.

A result is recorded only from a commit: `begin` refuses a tree with uncommitted changes before the work starts. With
RECORD=no a benchmark runs anyway, prints its rows and writes nothing.
"""

import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from furnace_hpc.runs.code import code_hash, git

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "torch",
    "deepspeed",
    "transformers",
    "librosa",
    "numpy",
    "submitit",
    "typer",
    "pydantic",
)


def begin() -> None:
    """Print the commit that will be recorded. Exits with 2 where nothing could be recorded: call it before the work."""
    if not is_wanted():
        print("RECORD=no: nothing will be recorded", file=sys.stderr, flush=True)
    elif problem := _problem():
        sys.exit(_refused(problem))
    else:
        print(f"recording for commit {_commit()}", file=sys.stderr, flush=True)


def write(name: str, rows: list[dict[str, Any]], note: str = "") -> None:
    """Print the rows and write `results/<name>.json`; not where the tree was changed while the benchmark ran."""
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not is_wanted():
        return
    if problem := _problem():
        sys.exit(_refused(problem))
    content = {
        "benchmark": name,
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(_portable(a) for a in sys.argv[1:])}".strip(),
        "commit": _commit(),
        "code_hash": code_hash(),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
        "note": note,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def is_wanted() -> bool:
    """Whether results are to be written."""
    return os.environ.get("RECORD") != "no"


@cache
def _commit() -> str:
    """The commit at the first call, which is before the work."""
    return git("rev-parse", "HEAD").strip()


def _problem() -> str:
    """Why nothing can be recorded; empty where it can. Results of other benchmarks may be new."""
    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=all", "--", ".", ":!benchmarks/results"
        ).splitlines()
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"the tree has uncommitted changes ({changed[0][3:]}{more})"
        if (now := git("rev-parse", "HEAD").strip()) != _commit():
            return f"the tree was at commit {_commit()[:12]} when the benchmark began, and is at {now[:12]}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"the commit is not known ({error})"
    return ""


def _refused(problem: str) -> int:
    print(
        f"error: {problem}, and a result must tell the commit it is of. Commit first; or give RECORD=no, and the "
        f"benchmark runs without recording",
        file=sys.stderr,
    )
    return 2


def _portable(argument: str) -> str:
    return "DIR" if argument.startswith("/") else argument


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
