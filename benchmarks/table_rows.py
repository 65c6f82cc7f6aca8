"""Measure `furnace pack table` on a long table of texts and labels, against polars reading it.

    python benchmarks/table_rows.py --work DIR --rows 10000000     DIR keeps the CSV and a pack

Both start as processes of their own, in turn. Memory is the largest sum over all processes, with
shared pages divided among them (PSS), without the pages of mapped files.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import record

REPEATS, BLOCK, WORDS = 3, 100_000, 30_000
LOOKED_EVERY_S = 1.0
GOAL_RATIO, GOAL_GIB = 20, 1.0
READ = "import sys, polars; polars.read_csv(sys.argv[1])"


def main() -> None:
    """Time both in turn, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the CSV and the pack")
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    record.begin()
    source = given.work / f"texts-{given.rows}.csv"
    if not source.exists():
        make_table(source, given.rows)
    read_s, pack_s, peaks = [], [], []
    for _ in range(REPEATS):
        read_s.append(measured([sys.executable, "-P", "-c", READ, str(source)])[0])
        out = given.work / "texts"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-P", "-m", "furnace_hpc.pack", "table", "--source", str(source)]
        command += ["--text", "text", "--label", "label", "--split", "80/10/10"]
        elapsed_s, peak = measured([*command, "--out", str(out), "--workers", "2"])
        pack_s.append(elapsed_s)
        peaks.append(peak / 2**30)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(pack_s, read_s, strict=True))
    rows: list[dict[str, Any]] = [
        {"measure": "polars reads the CSV", "median_s": round(statistics.median(read_s), 2)},
        {
            "measure": "furnace pack table, 2 workers",
            "median_s": round(statistics.median(pack_s), 1),
            "us_per_row": round(statistics.median(pack_s) / given.rows * 1e6, 1),
        },
        {
            "measure": "pack over read",
            "ratio": round(ratio, 1),
            "goal": GOAL_RATIO,
            "reached": ratio <= GOAL_RATIO,
        },
        {
            "measure": "memory of all processes without mapped files, GiB",
            "peak": round(max(peaks), 2),
            "goal": GOAL_GIB,
            "reached": max(peaks) <= GOAL_GIB,
        },
    ]
    record.write("table_rows", rows, f"{given.rows:,} rows of 5 to 29 words and one of ten labels")


def make_table(path: Path, num_rows: int) -> None:
    """Write a CSV of texts whose words are as frequent as those of natural language."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{rank}" for rank in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    with path.with_suffix(".tmp").open("w") as out:
        out.write("text,label\n")
        for first in range(0, num_rows, BLOCK):
            lengths = rng.integers(5, 30, min(BLOCK, num_rows - first))
            drawn = words[rng.choice(WORDS, lengths.sum(), p=frequency / frequency.sum())]
            texts = np.split(drawn, np.cumsum(lengths)[:-1])
            lines = [f"{' '.join(text)},c{number % 10}\n" for number, text in enumerate(texts)]
            out.write("".join(lines))
    path.with_suffix(".tmp").rename(path)


def measured(command: list[str]) -> tuple[float, int]:
    """Run a command. Return its seconds, and the largest memory of its processes in bytes."""
    started_s, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(min(LOOKED_EVERY_S, 0.02 + (time.perf_counter() - started_s) / 50))
    elapsed_s = time.perf_counter() - started_s
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return elapsed_s, peak


def memory_of(pid: int) -> int:
    """Memory of a process and all that it has started, in bytes.

    Pages of mapped files are left out: the kernel takes them back when memory is short.
    """
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {
                name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)
            }
            total += (sizes["Pss_Anon"] + sizes["Pss_Shmem"]) * 1024
    except (psutil.Error, OSError):  # one has ended meanwhile
        return total
    return total


if __name__ == "__main__":
    main()
