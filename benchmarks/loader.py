"""Measure the loader's samples per second against other ways to read the same samples.

    python benchmarks/loader.py                           about half an hour
    SAMPLES=256 REPEATS=1 python benchmarks/loader.py     some minutes

The peers need `pip install -e ".[benchmarks]"`, in a separate environment: litdata installs a
torchvision that may not fit the installed torch. A sample is a 224 x 224 RGB picture (uint8),
40 x 640 MFCC (float16) and 128 token ids: 202 kB. `article` starts from JPEG, WAV and text files
and makes floats with PIL and librosa in two worker processes. All others start from the same
samples packed in their own format. They give shuffled batches of 32 in the stored types, because
the device normalises. Each peer is measured with several settings, and the best one counts. The
ways whose names begin with `jpeg` read images of 224 px that are stored as JPEG (loader_jpeg.py).
"""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import loader_files as files
import loader_ways as ways
import record
from loader_jpeg import STORE

JPEG_PEERS = tuple(f"jpeg {peer}" for peer in ways.PEERS)
REPEATS = int(os.environ.get("REPEATS", "5"))
LIMIT_S = 90
PASS_S = 0.5  # a pass is as many epochs as take this long
GOALS = {
    "packed bytes : article": 100,
    "normalised floats : article": 10,
    "packed bytes : best peer, warm": 2,
    "packed bytes : best peer, cold": 1,
    "packed bytes : memory copy": 0.5,
    "jpeg store : best peer, warm": 1,
    "jpeg store : best peer, cold": 1,
}


def main() -> None:
    """Measure all ways in turn, warm and cold, and write medians and ratios."""
    record.begin()
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
            warm[way] += in_a_process(folder, way, PASS_S)
            if way in ways.FOLDER and drop_caches(folder / ways.FOLDER[way]):
                cold[way] += in_a_process(folder, way, None)
            shown = [f"{rates[way][-1]:,.0f}/s" if rates[way] else "-" for rates in (warm, cold)]
            print(
                f"repeat {repeat + 1} of {REPEATS}: {way}: warm {shown[0]}, cold {shown[1]}",
                flush=True,
            )
    return warm, cold


def in_a_process(folder: Path, way: str, at_least_s: float | None) -> list[float]:
    """Measure a rate in a new process, without threads or maps of other ways.

    Return None if the process does not end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loader_ways"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=rate, args=(there, folder, way, at_least_s))
    process.start()
    there.close()
    try:
        answers = [here.recv()] if here.poll(LIMIT_S) else []
    except EOFError:  # the process died, and its error is printed above
        answers = []
    process.kill()
    process.join()
    return answers


def rate(answer: Connection, folder: Path, way: str, at_least_s: float | None) -> None:
    """Send samples per second of the first epoch.

    With `at_least_s`, measure as many later epochs as take this long.
    """
    # fork workers, as without the server that started this process
    multiprocessing.set_start_method("fork", force=True)
    epoch = ways.OPEN[way](folder)
    if at_least_s is not None:
        sum(epoch())  # then everything is in memory, and workers have started
    count, started_s = 0, time.perf_counter()
    while not count or time.perf_counter() - started_s < (at_least_s or 0):
        for number in epoch():
            count += number
    answer.send(count / (time.perf_counter() - started_s))
    for worker in multiprocessing.active_children():
        worker.kill()
    time.sleep(LIMIT_S)  # until the parent kills this process: some loaders never end


def drop_caches(folder: Path) -> bool:
    """Remove the files from the page cache. Return whether none of their pages is left.

    The kernel drops clean pages that are not mapped.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not shutil.which("fincore"):
        return False  # unknown
    shown = subprocess.run(
        ["fincore", "--bytes", "--json", *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
    )
    resident = sum(int(file["res"]) for file in json.loads(shown.stdout)["fincore"])
    return resident < 0.02 * sum(path.stat().st_size for path in files)


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
