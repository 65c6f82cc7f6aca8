"""Time commands of the login node as whole processes: help, and a dry run of a 1,000-run grid.

python benchmarks/commands.py     goals: help under 0.5 s, dry run under 2 s, no torch imported,
                                  `import furnace_hpc` at most 50 ms more than Python alone
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record
import yaml

REPEATS = 9
BARE, IMPORT = "python -c pass", "python -c 'import furnace_hpc'"
IMPORT_GOAL_S = 0.05  # more than Python alone
PROBE = "import sys; from furnace_hpc.submit import main; print('torch' in sys.modules)"


def main() -> None:
    """Time the commands in turn and write medians."""
    record.begin()
    submit = [sys.executable, "-m", "furnace_hpc.submit"]
    with tempfile.TemporaryDirectory() as folder:
        dry_run = ["--grid", str(big_grid(Path(folder))), "--dry-run"]
        commands = {
            BARE: ([sys.executable, "-c", "pass"], None),
            IMPORT: ([sys.executable, "-c", "import furnace_hpc"], None),
            "submit --help": ([*submit, "--help"], 0.5),
            "submit --dry-run, 1,000 runs": (
                [*submit, *dry_run, "--cluster", "local"],
                2.0,
            ),
            "the same, with batch script": (
                [*submit, *dry_run, "--cluster", "a100", "--set", "portable=false"],
                2.0,
            ),
            "aggregate --help": ([sys.executable, "-m", "furnace_hpc.aggregate", "--help"], 0.5),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(REPEATS):  # in turn, so that noise affects all alike
            for name, (command, _) in commands.items():
                started_s = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                times[name].append(time.perf_counter() - started_s)
    rows: list[dict[str, object]] = []
    for name, (_, goal) in commands.items():
        median = statistics.median(times[name])
        row: dict[str, object] = {
            "command": name,
            "median_s": round(median, 3),
            "min_s": round(min(times[name]), 3),
        }
        if goal:
            row |= {"goal_s": goal, "reached": median < goal}
        rows.append(row)
    rows.append(_import_row(times))
    torch = subprocess.run(
        [sys.executable, "-c", PROBE], check=True, capture_output=True, text=True
    ).stdout.strip()
    rows.append(
        {
            "command": "torch imported by submit",
            "value": torch == "True",
            "goal": False,
            "reached": torch == "False",
        }
    )
    record.write("commands", rows)


def _import_row(times: dict[str, list[float]]) -> dict[str, object]:
    """What the import costs: the median of the differences, since both alternate."""
    pairs = zip(times[IMPORT], times[BARE], strict=True)
    more_s = statistics.median(after - before for after, before in pairs)
    return {
        "command": "import furnace_hpc, more than python -c pass",
        "median_s": round(more_s, 3),
        "goal_s": IMPORT_GOAL_S,
        "reached": more_s <= IMPORT_GOAL_S,
    }


def big_grid(folder: Path) -> Path:
    """A grid of 1,000 runs: 20 x 10 rows x 5 seeds."""
    shipped = Path(__file__).parent.parent / "experiments" / "ablation.yaml"
    content = yaml.safe_load(shipped.read_text())
    content["axes"] = {
        "optimizer.lr": [round(1e-4 * n, 6) for n in range(1, 21)],
        "loss.alpha": [round(0.1 * n, 2) for n in range(10)],
    }
    content["variants"] = {}
    content["reference"] = "lr-0.0001_alpha-0.0"
    content["seeds"] = [0, 1, 2, 3, 4]
    path = folder / "big.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


if __name__ == "__main__":
    main()
