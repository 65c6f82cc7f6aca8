"""Time a new user's first steps: a fresh clone, an empty home, no virtual environment, `make demo`.

python benchmarks/demo.py --work DIR     goals: at most 600 s with installation, then under 15 s
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

import record

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Clone, run `make demo` twice, and write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder; kept")
    work = parser.parse_args().work.resolve()
    record.begin()
    (work / "home").mkdir(parents=True)
    clone = work / "furnace"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(work / "home"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
    environment |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or "CERT" in name
    }
    rows = []
    for what, goal in (("fresh clone to table", 600), ("again", 15)):
        started_s = time.perf_counter()
        with (work / f"{what.replace(' ', '-')}.log").open("w") as log:
            done = subprocess.run(
                ["make", "demo"], cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        seconds = round(time.perf_counter() - started_s, 1)
        row = {"make demo": what, "seconds": seconds, "goal_s": goal, "exit": done.returncode}
        rows.append(row | {"reached": seconds <= goal and done.returncode == 0})
    record.write("demo", rows, f"load average at the end: {os.getloadavg()}")


if __name__ == "__main__":
    main()
