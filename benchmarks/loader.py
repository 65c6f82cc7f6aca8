"""Measure the loader's samples per second against other ways to read the same samples.

    python benchmarks/loader.py                           about half an hour
    SAMPLES=256 REPEATS=1 python benchmarks/loader.py     some minutes
    python benchmarks/loader.py --memory-limit MB         sets larger than memory: loader_limit.py

The peers need `pip install -e ".[benchmarks]"`, in a separate environment: litdata installs a
torchvision that may not fit the installed torch. A sample is a 224 x 224 RGB picture (uint8),
40 x 640 MFCC (float16) and 128 token ids: 202 kB. `article` starts from JPEG, WAV and text files
and makes floats with PIL and librosa in two worker processes. All others start from the same
samples packed in their own format. They give shuffled batches of 32 in the stored types, because
the device normalises. Each peer is measured with several settings, and the best one counts. The
ways whose names begin with `jpeg` read images of 224 px that are stored as JPEG (loader_jpeg.py).
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import loader_files as files
import loader_limit
import loader_ways as ways
import record
from loader_jpeg import STORE
from loader_memory import NoMemoryGroupError, find_place
from loader_process import LIMIT_S, drop_caches, in_a_process, rate

JPEG_PEERS = tuple(f"jpeg {peer}" for peer in ways.PEERS)
REPEATS = int(os.environ.get("REPEATS", "5"))
PASS_S = 0.5  # a pass is as many epochs as take this long
GOALS = {
    "packed bytes : article": 100,
    "normalised floats : article": 10,
    "packed bytes : best peer, warm": 2,
    "packed bytes : best peer, cold": 1.2,
    "packed bytes : memory copy": 0.9,
    "jpeg store : best peer, warm": 1,
    "jpeg store : best peer, cold": 1,
}


def main() -> None:
    """Measure all ways in turn, and write medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--memory-limit",
        type=int,
        metavar="MB",
        help="measure only sets that do not fit into this much memory, in memory cgroups",
    )
    limit_mb = parser.parse_args().memory_limit
    # then cgroups, processes and gigabytes of files are removed, as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if limit_mb is None:
        record.begin()
        warm_and_cold()
        return
    try:
        loader_limit.check(limit_mb)
        place = find_place()
    except (ValueError, NoMemoryGroupError) as error:
        sys.exit(_refused(f"--memory-limit {limit_mb}: {error}"))
    record.begin()
    rows, note = loader_limit.larger_than_memory(place, limit_mb, REPEATS)
    record.write("loader_limit", rows, note)


def _refused(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def warm_and_cold() -> None:
    """Measure all ways from memory and from the disk, and write the rows."""
    with tempfile.TemporaryDirectory(prefix="furnace-loader-") as name:
        folder = Path(name)
        print(f"{files.SAMPLES} samples are made", flush=True)
        files.make_files(folder)
        missing = files.prepare(folder)
        found = [way for way in ways.OPEN if not way.startswith(tuple(missing) or ("none",))]
        warm, cold = measure(folder, found)
        missing |= {
            way: f"no epoch within {LIMIT_S} s, or an error" for way in found if not warm[way]
        }
        opens = {way: opened_per_sample(folder, way) for way in ("article", "packed bytes")}
    rows = table(warm, cold, opens) + [{"way": way, "missing": why} for way, why in missing.items()]
    record.write("loader", [*rows, *ratios(warm, cold, opens)], ways.note())
    markdown(rows, ratios(warm, cold, opens), missing)


def measure(
    folder: Path, found: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Samples/s of each way and repeat, from memory and from the disk."""
    warm: dict[str, list[float]] = {way: [] for way in found}
    cold: dict[str, list[float]] = {way: [] for way in found}
    for repeat in range(REPEATS):
        for way in found:
            warm[way] += in_a_process(rate, folder, way, PASS_S)
            if way in ways.FOLDER and drop_caches(folder / ways.FOLDER[way]):
                cold[way] += in_a_process(rate, folder, way, None)
            shown = [f"{rates[way][-1]:,.0f}/s" if rates[way] else "-" for rates in (warm, cold)]
            print(
                f"repeat {repeat + 1} of {REPEATS}: {way}: warm {shown[0]}, cold {shown[1]}",
                flush=True,
            )
    return warm, cold


def opened_per_sample(folder: Path, way: str) -> float | None:
    """Files below the folder that are opened per sample, counted by strace.

    The count of one epoch is subtracted from that of three, which leaves the steady state.
    """
    if not shutil.which("strace"):
        return None
    opened = []
    for epochs in (1, 3):
        trace = folder / "trace"
        command = [sys.executable, str(Path(ways.__file__)), str(folder), way, str(epochs)]
        subprocess.run(
            ["strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(trace), *command],
            check=True,
        )
        lines = trace.read_text().splitlines()
        opened.append(sum(f'"{folder}/' in line and " ENOENT " not in line for line in lines))
    return (opened[1] - opened[0]) / 2 / (files.FILES if way == "article" else files.SAMPLES)


def table(
    warm: dict[str, list[float]], cold: dict[str, list[float]], opens: dict[str, float | None]
) -> list[dict[str, Any]]:
    """A row for each way: medians, and the range of the repeats."""
    lines = []
    for way in [way for way in warm if warm[way]]:
        line: dict[str, Any] = {"way": way, "warm_per_s": round(statistics.median(warm[way]))}
        line["warm_range"] = [round(min(warm[way])), round(max(warm[way]))]
        if cold[way]:
            line["cold_per_s"] = round(statistics.median(cold[way]))
            line["cold_range"] = [round(min(cold[way])), round(max(cold[way]))]
        if way in opens:
            line["files_opened_per_sample"] = opens[way]
        lines.append(line)
    return lines


def ratios(
    warm: dict[str, list[float]], cold: dict[str, list[float]], opens: dict[str, float | None]
) -> list[dict[str, Any]]:
    """Compare with each goal the median of the repeats' ratios.

    The ratio is taken per repeat, because the speed of the machine varies.
    """

    def best(times: dict[str, list[float]], names: tuple[str, ...] = ways.PEERS) -> str | None:
        peers = [way for way in times if way.startswith(names) and times[way]]
        return max(peers, key=lambda way: statistics.median(times[way]), default=None)

    pairs = {
        "packed bytes : article": (warm, "packed bytes", "article"),
        "normalised floats : article": (warm, "normalised floats", "article"),
        "packed bytes : best peer, warm": (warm, "packed bytes", best(warm)),
        "packed bytes : best peer, cold": (cold, "packed bytes", best(cold)),
        "packed bytes : memory copy": (warm, "packed bytes", "memory copy"),
        "jpeg store : best peer, warm": (warm, STORE, best(warm, JPEG_PEERS)),
        "jpeg store : best peer, cold": (cold, STORE, best(cold, JPEG_PEERS)),
    }
    rows = []
    for name, (times, ours, other) in pairs.items():
        row: dict[str, Any] = {"ratio": name, "goal": GOALS[name]}
        if other and times.get(ours) and times.get(other):
            each = sorted(one / two for one, two in zip(times[ours], times[other], strict=False))
            measured = statistics.median(each)
            row |= {
                "against": other,
                "measured": float(f"{measured:.3g}"),
                "reached": measured >= GOALS[name],
            }
            row["range"] = [float(f"{value:.3g}") for value in (each[0], each[-1])]
        else:
            row["missing"] = "not measured: nothing to compare with"
        rows.append(row)
    if opens["packed bytes"] is not None:
        measured = {"measured": opens["packed bytes"], "article": opens["article"]}
        rows.append(
            {
                "ratio": "files opened per sample",
                "goal": 0,
                **measured,
                "reached": not opens["packed bytes"],
            }
        )
    return rows


def markdown(
    rows: list[dict[str, Any]], goals: list[dict[str, Any]], missing: dict[str, str]
) -> None:
    """Write the same content as `results/loader.md`."""
    lines = [
        f"# Loader: {files.SAMPLES} samples of {files.SAMPLE_BYTES / 1000:.0f} kB, "
        f"batches of {ways.BATCH}",
        "",
        "`python benchmarks/loader.py`; versions, machine and commit are in `loader.json`. "
        + ways.note(),
        "",
        "| way | warm, samples/s | range | cold, samples/s | range | files opened per sample |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "missing" in row:
            continue
        ranges = [
            "-".join(f"{value:,}" for value in row.get(f"{kind}_range", []))
            for kind in ("warm", "cold")
        ]
        cold = f"{row['cold_per_s']:,}" if "cold_per_s" in row else ""
        opened = row.get("files_opened_per_sample")
        shown = "" if opened is None else f"{opened:g}"
        lines.append(
            f"| {row['way']} | {row['warm_per_s']:,} | {ranges[0]} "
            f"| {cold} | {ranges[1]} | {shown} |"
        )
    lines += [
        "",
        "| ratio | against | measured | range | goal | reached |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in goals:
        reached = {True: "yes", False: "no: missed", None: "not measured"}[row.get("reached")]
        measured = [
            row.get("against", ""),
            row.get("measured", ""),
            "-".join(map(str, row.get("range", []))),
        ]
        lines.append(
            "| " + " | ".join(map(str, [row["ratio"], *measured, row["goal"], reached])) + " |"
        )
    lines += ["", *(f"Missing: {way} ({why})." for way, why in missing.items())]
    if record.is_wanted():
        (record.RESULTS / "loader.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
