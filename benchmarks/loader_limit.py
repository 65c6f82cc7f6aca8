"""The part of loader.py that reads sets larger than memory: `--memory-limit MB`.

    SAMPLES=3072 JPEG_SAMPLES=44800 REPEATS=3 python benchmarks/loader.py --memory-limit 300

It needs root (or a delegated cgroup), 8 GB of disk and half an hour. Both sets have about 620 MB.

Each measuring process, with its workers, is in a memory cgroup of its own. The page cache counts,
so the set never fits. Before it, the files are removed from the page cache: pages that another
process has read would not count. Two passes are timed. `own_memory_mb` is the largest memory of
the processes, shared memory included and files not. If the kernel kills a process, the row has
no speed and counts the kills.

`article` has too few files for this, and `memory copy` reads none. The ways of JPEG files need more
samples, because those are smaller: `JPEG_SAMPLES`.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import loader_files as files
import loader_memory as memory
import loader_ways as ways
from loader_jpeg import STORE
from loader_process import drop_caches, in_a_process, passes

PASSES = 2
LIMIT_S = 200  # for all passes of a process


class Measured(NamedTuple):
    """One process: samples/s of each pass, its memory, and how often the kernel killed."""

    rates: list[float]
    own_mb: float
    kills: int

    @property
    def together(self) -> float:
        """Samples/s of all passes. 0 if a pass is missing."""
        return statistics.harmonic_mean(self.rates) if len(self.rates) == PASSES else 0.0


def larger_than_memory(
    place: memory.Place, limit_mb: int, repeats: int
) -> tuple[list[dict[str, Any]], str]:
    """Measure all ways whose files are larger than the limit. Return the rows and a note."""
    with tempfile.TemporaryDirectory(prefix="furnace-loader-") as name:
        folder = Path(name)
        print(f"{files.SAMPLES} samples and {files.JPEG_SAMPLES} JPEG files are made", flush=True)
        files.make_files(folder)
        missing = files.prepare(folder)
        found = [way for way in ways.FOLDER if not way.startswith(tuple(missing) or ("none",))]
        found.remove("article")
        sizes = {way: size_mb(folder / ways.FOLDER[way]) for way in found}
        for way in [way for way in found if sizes[way] <= limit_mb]:
            missing[way] = f"its {sizes[way]:.0f} MB fit into the limit"
        found = [way for way in found if way not in missing]
        measured = measure(folder, found, place, limit_mb, repeats)
    rows = [row(way, measured[way], sizes[way], limit_mb) for way in found]
    rows += [{"way": way, "missing": why} for way, why in missing.items()]
    note = f"Memory cgroup of version {place.version}. {ways.versions()}"
    return [*rows, *ratios(measured)], note


def check(limit_mb: int) -> None:
    """Raise ValueError unless the set is larger than the limit."""
    set_mb = files.SAMPLES * files.SAMPLE_BYTES / memory.MB
    if not 0 < limit_mb < set_mb:
        raise ValueError(
            f"wanted 1 or more, and less than the set of {set_mb:.0f} MB. Give less, or more "
            "samples with the environment variable SAMPLES"
        )


def size_mb(folder: Path) -> float:
    """The bytes of all files below a folder, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / memory.MB


def measure(
    folder: Path, found: list[str], place: memory.Place, limit_mb: int, repeats: int
) -> dict[str, list[Measured]]:
    """Measure all ways in turn, in each repeat."""
    measured: dict[str, list[Measured]] = {way: [] for way in found}
    for repeat in range(repeats):
        for way in found:
            if not drop_caches(folder / ways.FOLDER[way]):
                raise SystemExit(
                    "the page cache cannot be emptied of the files, or fincore (util-linux) is "
                    "not installed"
                )
            one = in_a_group(folder, way, place, limit_mb)
            measured[way].append(one)
            shown = ", ".join(f"{rate:,.0f}/s" for rate in one.rates) or "-"
            print(
                f"repeat {repeat + 1} of {repeats}: {way}: {shown}, "
                f"{one.own_mb:.0f} MB of its own, {one.kills} killed",
                flush=True,
            )
    return measured


def in_a_group(folder: Path, way: str, place: memory.Place, limit_mb: int) -> Measured:
    """Measure a way in a new process, in a new memory cgroup."""
    used_mb = [0.0]
    with memory.MemoryGroup(place, limit_mb) as group:
        rates = in_a_process(
            passes,
            folder,
            way,
            group.path,
            PASSES,
            answers=PASSES,
            limit_s=LIMIT_S,
            watch=lambda: used_mb.append(group.own_mb()),
        )
        return Measured(rates, max(used_mb), group.kills())


def row(way: str, measured: list[Measured], set_mb: float, limit_mb: int) -> dict[str, Any]:
    """The row of a way: medians of the repeats and their range."""
    line: dict[str, Any] = {"way": way, "limit_mb": limit_mb, "set_mb": round(set_mb)}
    line["own_memory_mb"] = round(max(one.own_mb for one in measured))
    line["killed"] = sum(one.kills for one in measured)
    complete = [one for one in measured if one.together]
    if len(complete) < len(measured):
        why = "killed because of the limit" if line["killed"] else "an error"
        line["missing"] = f"{why}, or not ready within {LIMIT_S} s"
        return line
    for number, name in enumerate(("first_pass", "second_pass")):
        rates = [one.rates[number] for one in complete]
        line[f"{name}_per_s"] = round(statistics.median(rates))
        line[f"{name}_range"] = [round(min(rates)), round(max(rates))]
    return line


def ratios(measured: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """Ours against the best peer, both passes together, and whether ours was killed."""
    rows: list[dict[str, Any]] = []
    jpeg_peers = tuple(f"jpeg {peer}" for peer in ways.PEERS)
    for ours, peers in (("packed bytes", ways.PEERS), (STORE, jpeg_peers)):
        if ours not in measured:
            continue
        medians = {
            way: statistics.median(one.together for one in each)
            for way, each in measured.items()
            if way.startswith(peers) and all(one.together for one in each)
        }
        kills = sum(one.kills for one in measured[ours])
        rows.append({"what": f"{ours}: killed", "measured": kills, "goal": 0, "reached": not kills})
        name = f"{ours} : best peer, larger than memory"
        if not medians or not all(one.together for one in measured[ours]):
            rows.append({"ratio": name, "missing": "not measured: nothing to compare with"})
            continue
        best = max(medians, key=lambda way: medians[way])
        each = [
            one.together / two.together
            for one, two in zip(measured[ours], measured[best], strict=True)
        ]
        shown = [float(f"{value:.3g}") for value in (statistics.median(each), min(each), max(each))]
        rows.append({"ratio": name, "against": best, "measured": shown[0], "range": shown[1:]})
    return rows
