"""How every benchmark writes its result: figures, goals, command, versions, machine and commit, in one JSON file."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from furnace_hpc.runs.code import code_hash, git_commit

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "deepspeed", "transformers", "librosa", "numpy", "submitit", "typer", "pydantic")


def write(name: str, rows: list[dict[str, Any]], note: str = "") -> None:
    """Write `results/<name>.json` and print the rows."""
    content = {
        "benchmark": name,
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(_portable(a) for a in sys.argv[1:])}".strip(),
        "commit": git_commit(),
        "code_hash": code_hash(),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES},
        "note": note,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def _portable(argument: str) -> str:
    return "DIR" if argument.startswith("/") else argument


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
