"""Write the result of a benchmark as JSON: figures, goals, command, versions, machine and commit.

A result is recorded only for a commit: `begin` refuses a tree with uncommitted changes before the
work starts. With RECORD=no a benchmark prints its rows and writes nothing.
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
    """Print the commit that will be recorded. Call it before the work.

    Exits with 2 if nothing can be recorded.
    """
    # Container images often set it. Then each measured process would compile all its modules.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not is_wanted():
        print("RECORD=no: nothing will be recorded", file=sys.stderr, flush=True)
    elif problem := find_problem():
        sys.exit(_refused(problem))
    else:
        print(f"recording for commit {_commit()}", file=sys.stderr, flush=True)


def write(name: str, rows: list[dict[str, Any]], note: str = "") -> None:
    """Print the rows and write `results/<name>.json`.

    Exits with 2 if the tree has changed since `begin`.
    """
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not is_wanted():
        return
    if problem := find_problem():
        sys.exit(_refused(problem))
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_portable, sys.argv[1:])]
    content = {
        "benchmark": name,
        "command": " ".join(command),
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


def find_problem() -> str:
    """Why nothing can be recorded, or an empty string. Results of other benchmarks may be new."""
    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=all", "--", ".", ":!benchmarks/results"
        ).splitlines()
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"the tree has uncommitted changes ({changed[0][3:]}{more})"
        if (now := git("rev-parse", "HEAD").strip()) != _commit():
            return (
                f"the tree was at commit {_commit()[:12]} when the benchmark began, "
                f"and is now at {now[:12]}"
            )
    except (OSError, subprocess.SubprocessError) as error:
        return f"the commit is unknown ({error})"
    return ""


def _refused(problem: str) -> int:
    print(
        f"error: {problem}, but a result must name its commit. "
        f"Commit first, or set RECORD=no to run without recording",
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
